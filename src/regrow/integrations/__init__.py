"""Integrations: regrow inside the training code of others, one file a framework; nothing else imports them."""
