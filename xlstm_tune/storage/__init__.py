"""Searches kept at a URI: files on any of pyarrow's file systems, and how a search is fetched from there."""
