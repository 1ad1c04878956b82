//! Metal Marlin: checkpoint.
