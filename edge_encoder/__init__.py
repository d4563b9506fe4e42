"""The edge encoder: frames in; faces detected, aligned, encoded, kept; basic layers out."""
