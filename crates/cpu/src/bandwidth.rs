//! bandwidth
