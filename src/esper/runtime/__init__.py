"""Joins the rooms: the session, its rounds, snapshots, bookkeeping."""
