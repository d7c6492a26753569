"""What is left of a search when everything has died: its folder, its journal, their copy, and who may write them."""
