//! Metal Marlin: backend.
