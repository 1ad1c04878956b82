//! Steps: their tables on the device, and what of their shape a recording depends on.

use super::product::FEW_ROWS;
use super::samples::GpuSamples;
use super::{GpuBackend, GpuKv};
use crate::Slice;
use crate::kernels::{CountArgs, TakeTokens};
use marlin_backend::{Result, Step, Token};
use std::ops::Range;

/// Where the tables of a step lie in one buffer of words. Steps of equal layouts differ in what the buffer holds only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Layout {
    pub rows: usize,
    pub outputs: usize,
    /// Entries of all block tables, rounded up generously.
    blocks: usize,
    /// No row has more positions before and including its own; rounded up generously.
    pub context: usize,
    /// Every row's logits are wanted.
    pub all: bool,
    /// Every row is a sequence of its own.
    pub single: bool,
    /// Sequences of more than a few rows.
    spans: usize,
}

/// A sequence of more than a few rows.
#[derive(Clone, Copy)]
pub(super) struct Span {
    /// Its first row in the step.
    pub first: usize,
    /// Its rows.
    pub rows: usize,
    /// Positions that it has up to its last row.
    pub positions: usize,
}

impl Layout {
    /// Where each table begins: tokens, positions, places, slots, outputs, blocks, spans; and the end of all.
    fn starts(&self) -> [usize; 8] {
        let mut at = 0;
        [0, self.rows, self.rows, 2 * self.rows, self.rows, self.outputs, self.blocks, 4 * self.spans].map(|len| {
            at += len.next_multiple_of(64);
            at
        })
    }

    /// Words of all tables.
    pub fn words(&self) -> usize {
        self.starts()[7]
    }
}

/// A prepared step.
pub struct GpuBatch {
    pub(super) layout: Layout,
    pub(super) tables: Slice<u32>,
    /// In the order of their rows.
    pub(super) spans: Vec<Span>,
}

impl GpuBatch {
    pub(super) fn tokens(&self) -> Slice<u32> {
        self.tables.part(self.layout.starts()[0], self.layout.rows)
    }
    pub(super) fn positions(&self) -> Slice<u32> {
        self.tables.part(self.layout.starts()[1], self.layout.rows)
    }
    /// For each row where its sequence's blocks begin in `blocks`, and its position.
    pub(super) fn places(&self) -> Slice<u32> {
        self.tables.part(self.layout.starts()[2], 2 * self.layout.rows)
    }
    /// For each row the slot of the pool that is its own.
    pub(super) fn slots(&self) -> Slice<u32> {
        self.tables.part(self.layout.starts()[3], self.layout.rows)
    }
    pub(super) fn outputs(&self) -> Slice<u32> {
        self.tables.part(self.layout.starts()[4], self.layout.outputs)
    }
    pub(super) fn blocks(&self) -> Slice<u32> {
        self.tables.part(self.layout.starts()[5], self.layout.blocks)
    }
    /// For each span its first row, its rows, its first row's position, and how many positions the spans before it have.
    pub(super) fn span_table(&self) -> Slice<u32> {
        self.tables.part(self.layout.starts()[6], 4 * self.layout.spans)
    }
    /// Rows that belong to no span.
    pub(super) fn rest(&self) -> Vec<Range<usize>> {
        let ends = self.spans.iter().map(|s| s.first + s.rows);
        let firsts = self.spans.iter().map(|s| s.first).chain([self.layout.rows]);
        [0].into_iter().chain(ends).zip(firsts).map(|(from, to)| from..to).filter(|r| !r.is_empty()).collect()
    }
}

impl GpuBackend {
    /// Prepares a step: its tables in one upload. Samples of the step before that are on the device stay there.
    pub(super) fn prepare_step(&self, step: &Step, kv: &GpuKv, previous: Option<&GpuSamples>) -> Result<GpuBatch> {
        let needs = step.tokens.iter().any(|t| matches!(t, Token::Sampled(_)));
        let previous = previous.filter(|_| needs);
        step.check(&kv.spec, previous.map_or(0, GpuSamples::len))?;
        let known = match previous {
            Some(samples) if samples.on_device().is_none() => self.choose(samples)?,
            _ => Vec::new(),
        };
        let size = kv.spec.block_size;
        let id = |t: &Token| match *t {
            Token::Id(id) => id,
            Token::Sampled(row) => known.get(row as usize).map_or(0, |sample| sample.token),
        };
        let mut starts = Vec::new();
        let mut blocks: Vec<u32> = Vec::new();
        let (mut spans, mut span_table, mut first, mut positions) = (Vec::new(), Vec::new(), 0, 0);
        for s in &step.sequences {
            starts.push(blocks.len() as u32);
            blocks.extend(&s.blocks[..(s.cached + s.len).div_ceil(size)]);
            if s.len > FEW_ROWS {
                let span = Span { first, rows: s.len, positions: s.cached + s.len };
                span_table.extend([first, s.len, s.cached, positions].map(|n| n as u32));
                positions += span.positions;
                spans.push(span);
            }
            first += s.len;
        }
        let rows: Vec<_> = step.rows().collect();
        let slot = |r: &marlin_backend::Row| {
            step.sequences[r.sequence].blocks[r.position / size] * size as u32 + (r.position % size) as u32
        };
        let context = rows.iter().map(|r| r.position + 1).max().unwrap_or(1);
        let layout = Layout {
            rows: rows.len(),
            outputs: step.outputs.len(),
            blocks: blocks.len().next_power_of_two(),
            context: context.next_power_of_two().max(256),
            all: step.outputs.len() == rows.len(),
            single: step.sequences.iter().all(|s| s.len == 1),
            spans: spans.len(),
        };
        let tokens: Vec<u32> = step.tokens.iter().map(id).collect();
        let positions: Vec<u32> = rows.iter().map(|r| r.position as u32).collect();
        let places: Vec<u32> = rows.iter().flat_map(|r| [starts[r.sequence], r.position as u32]).collect();
        let slots: Vec<u32> = rows.iter().map(slot).collect();
        let mut all = vec![0; layout.words()];
        for (start, table) in
            layout.starts().into_iter().zip([&tokens, &positions, &places, &slots, &step.outputs, &blocks, &span_table])
        {
            all[start..start + table.len()].copy_from_slice(table);
        }
        let batch = GpuBatch { layout, tables: self.gpu.upload(&all)?, spans };
        if let Some(chosen) = previous.and_then(GpuSamples::on_device) {
            let which: Vec<u32> =
                step.tokens.iter().map(|t| if let Token::Sampled(row) = *t { row } else { u32::MAX }).collect();
            let which = self.gpu.upload(&which)?;
            let args = CountArgs { count: layout.rows as u32 };
            TakeTokens {}.launch(
                &self.gpu,
                [args.count.div_ceil(256), 1, 1],
                &which,
                chosen,
                &batch.tokens(),
                &args,
            )?;
        }
        Ok(batch)
    }
}
