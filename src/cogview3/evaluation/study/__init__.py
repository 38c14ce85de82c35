"""Human study: pairs of pictures, judged blind; the paper's figures 4, 5 and 7."""
