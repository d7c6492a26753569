"""What is searched, and which configuration comes next."""
