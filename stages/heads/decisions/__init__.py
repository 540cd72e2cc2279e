"""From probabilities to decisions: operating points and conformal sets, chosen on records that no model learnt from."""
