//! Metal Marlin: engine.
