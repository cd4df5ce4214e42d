"""Writes Django's failed logins as lines that blocker reads. Add it to INSTALLED_APPS; see README.md."""
