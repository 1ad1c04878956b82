//! Metal Marlin: eval.
