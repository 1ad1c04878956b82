//! Forward passes that are recorded: a decoding step of one shape is enqueued once and from then on replayed as a whole.

use super::batch::Layout;
use super::{GpuBackend, GpuBatch, GpuKv, Tensor};
use crate::kernels::{CopyWords, CountArgs};
use crate::{Recording, Slice};
use marlin_backend::Result;
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

/// Sequences of a step that is recorded, at most.
const MOST_ROWS: usize = 64;

/// Shapes of steps that are kept, at most.
const MOST_SHAPES: usize = 64;

/// What a step must have in common with a recorded one. KV pools have numbers of their own, which are never used again.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Shape {
    layout: Layout,
    kv: u64,
}

enum Known {
    /// Has been computed once: kernels are compiled, tables made.
    Seen,
    /// Something in it cannot be recorded.
    Never,
    Recorded(Box<Recorded>),
}

struct Recorded {
    recording: Recording,
    /// What the recording reads its step from.
    tables: Slice<u32>,
    /// What it gives.
    logits: Tensor,
}

/// The recorded passes of one model.
#[derive(Default)]
pub struct GpuRecordings(Mutex<HashMap<Shape, Known>>);

impl GpuBackend {
    /// `forward(batch)`, replayed if a step of this shape has been recorded; recorded the second time it is asked for.
    pub(super) fn replayed<E: From<marlin_backend::Error>>(
        &self,
        recordings: &GpuRecordings,
        batch: &GpuBatch,
        kv: &GpuKv,
        forward: impl Fn(&GpuBatch) -> std::result::Result<Tensor, E>,
    ) -> std::result::Result<Tensor, E> {
        if !self.options.record || !batch.layout.single || batch.layout.rows > MOST_ROWS || self.gpu.is_timing() {
            return forward(batch);
        }
        if self.gpu.is_rehearsing() {
            // Now and when it is recorded, tables and logits are copied by the same kernel.
            self.copy(&batch.tables, &batch.tables)?;
            return forward(batch);
        }
        let shape = Shape { layout: batch.layout, kv: kv.number };
        let mut all = recordings.0.lock().unwrap_or_else(PoisonError::into_inner);
        match all.get(&shape) {
            Some(Known::Recorded(recorded)) => return Ok(self.again(recorded, batch)?),
            Some(Known::Never) => return forward(batch),
            None => {
                if all.len() >= MOST_SHAPES {
                    all.clear();
                }
                all.insert(shape, Known::Seen);
                return forward(batch);
            }
            Some(Known::Seen) => {}
        }
        let tables = self.gpu.uninitialised(batch.layout.words()).map_err(marlin_backend::Error::from)?;
        let own = GpuBatch { layout: batch.layout, tables, spans: Vec::new() };
        let pass = || forward(&own).and_then(|y| Ok(self.settled(&y).map_err(marlin_backend::Error::from)?));
        let Ok(Some((recording, Ok(logits)))) = self.gpu.record(pass) else {
            all.insert(shape, Known::Never);
            return forward(batch);
        };
        let recorded = Recorded { recording, tables: own.tables, logits };
        let found = self.again(&recorded, batch)?;
        all.insert(shape, Known::Recorded(Box::new(recorded)));
        Ok(found)
    }

    /// Replays a recording on this step. What it gives is copied, so that the next replay does not change it.
    fn again(&self, recorded: &Recorded, batch: &GpuBatch) -> Result<Tensor> {
        let Recorded { recording, tables, logits } = recorded;
        self.copy(&batch.tables, tables)?;
        self.gpu.replay(recording)?;
        let y = self.uninitialised(logits.rows, logits.cols)?;
        self.copy(&logits.data.cast(), &y.data.cast())?;
        Ok(y)
    }

    fn copy(&self, from: &Slice<u32>, to: &Slice<u32>) -> Result<()> {
        let args = CountArgs { count: from.len() as u32 };
        Ok(CopyWords {}.launch(&self.gpu, [args.count.div_ceil(256), 1, 1], from, to, &args)?)
    }
}
