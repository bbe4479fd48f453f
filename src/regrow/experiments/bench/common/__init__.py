"""What benches share: machine, report files, tables, spreads, turns, options."""
