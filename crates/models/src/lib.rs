//! Metal Marlin: models.
