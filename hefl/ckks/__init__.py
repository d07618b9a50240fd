"""CKKS contexts and the engines that compute in them."""
