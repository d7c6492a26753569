"""What comes after the trials: the test part, the champion, and what the report needs of the winner."""
