"""Array operations that methods share: class maps, affinities, dense CRF, superpixels."""
