"""Whether a challenger takes the champion's place, and what is left of a promotion that died."""
