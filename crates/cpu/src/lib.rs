//! Metal Marlin: cpu.
