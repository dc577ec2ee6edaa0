"""From notebooks to what readers see."""
