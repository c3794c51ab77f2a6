"""From encoded pictures to answers: one picture, a batch, an archive."""
