//! A prepared step.

use super::kv::Spans;
use crate::Cpu;
use marlin_backend::{RopeTable, Sample, Step, Token};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// A prepared step.
pub struct CpuBatch {
    pub(super) tokens: Vec<u32>,
    pub(super) spans: Spans,
    pub(super) outputs: Vec<u32>,
    positions: Vec<u32>,
    /// Cosines and sines of the step's positions, for each rotary table that has been used.
    angles: Mutex<Vec<(Arc<RopeTable>, Arc<Angles>)>>,
    /// `0..tokens`: where each row's angles are.
    pub(super) rows: Vec<u32>,
}

impl CpuBatch {
    /// A checked step; `samples` are what its sampled tokens refer to.
    pub(super) fn new(step: &Step, samples: &[Sample]) -> Self {
        let id = |token: &Token| match *token {
            Token::Id(id) => id,
            Token::Sampled(row) => samples[row as usize].token,
        };
        Self {
            tokens: step.tokens.iter().map(id).collect(),
            spans: Spans::new(step),
            outputs: step.outputs.clone(),
            positions: step.rows().map(|row| row.position as u32).collect(),
            angles: Mutex::default(),
            rows: (0..step.tokens.len() as u32).collect(),
        }
    }

    /// Cosines and sines of the step's rows, computed once for all layers.
    pub(super) fn angles(&self, cpu: &Cpu, rope: &Arc<RopeTable>) -> Arc<Angles> {
        let mut known = self.angles.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, angles)) = known.iter().find(|(table, _)| Arc::ptr_eq(table, rope) || table == rope) {
            return angles.clone();
        }
        let angles = Arc::new(Angles::new(cpu, &rope.inv_freq, &self.positions));
        known.push((rope.clone(), angles.clone()));
        angles
    }
}

/// Cosines and sines of a step's rows, `[rows, pairs]`.
pub(super) struct Angles {
    pub cos: Vec<f32>,
    pub sin: Vec<f32>,
}

impl Angles {
    /// The angle is rounded to f32 before its cosine and sine are taken, as transformers does.
    fn new(cpu: &Cpu, inv_freq: &[f32], positions: &[u32]) -> Self {
        let row =
            |position: &u32| -> Vec<(f32, f32)> { inv_freq.iter().map(|f| (*position as f32 * f).sin_cos()).collect() };
        let rows: Vec<OnceLock<Vec<(f32, f32)>>> = positions.iter().map(|_| OnceLock::new()).collect();
        cpu.pool().ranges(positions.len(), 16, &|range| {
            for i in range {
                rows[i].get_or_init(|| row(&positions[i]));
            }
        });
        let all = || rows.iter().flat_map(|row| row.get().into_iter().flatten());
        Self { sin: all().map(|(sin, _)| *sin).collect(), cos: all().map(|(_, cos)| *cos).collect() }
    }
}
