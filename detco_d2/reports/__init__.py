"""Runs -> pages: run folder, page, benchmark, tables, pictures of features."""
