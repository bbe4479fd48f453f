"""Storage: how a sparse weight is held in a module. One meaning, several forms behind one small interface."""
