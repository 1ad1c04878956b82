//! Statistics on disk: a folder with one safetensors file a layer, and what they were made from.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use marlin_backend::Backend;
use marlin_checkpoint::{Checkpoint, DType, Error as Bad, Store, TensorInfo, TensorSource};
use serde::{Deserialize, Serialize};

use super::{ExpertInputs, LayerStats, Moments, Routed, Runner, Samples, Watch};
use crate::files::{bytes_of, lock, read_json, write_json, write_tensors};
use crate::{Compute, Error, Hessian, Matrix, Result, identity};

/// The file that says what the statistics are of.
const ABOUT: &str = "stats.json";

/// What statistics were made from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    /// Version of these files.
    pub format: u32,
    /// The model's name.
    pub model: String,
    /// Its [`identity`](crate::identity).
    pub model_identity: String,
    /// SHA-256 of the windows' tokens.
    pub text: String,
    /// Windows.
    pub windows: usize,
    /// Tokens of a window.
    pub length: usize,
    /// Decoder layers.
    pub layers: usize,
    /// Whether experts have moments of their own for gate and up.
    pub own_expert_inputs: bool,
}

impl About {
    /// What statistics of `checkpoint` on `samples` would be made from.
    pub fn of(checkpoint: &Checkpoint, samples: &Samples, layers: usize, experts: ExpertInputs) -> Result<Self> {
        Ok(Self {
            format: 1,
            model: checkpoint.name.clone(),
            model_identity: identity(checkpoint)?,
            text: samples.hash.clone(),
            windows: samples.windows.len(),
            length: samples.windows.first().map_or(0, Vec::len),
            layers,
            own_expert_inputs: experts == ExpertInputs::Own,
        })
    }
}

/// Statistics of a whole model.
#[derive(Clone, Debug)]
pub struct Stats {
    folder: PathBuf,
    /// What they were made from.
    pub about: About,
}

fn layer_path(folder: &Path, layer: Option<usize>) -> PathBuf {
    folder.join(layer.map_or("head.safetensors".to_owned(), |i| format!("layer-{i:05}.safetensors")))
}

impl Stats {
    /// Opens complete statistics.
    pub fn open(folder: &Path) -> Result<Self> {
        let path = folder.join(ABOUT);
        if !path.exists() {
            let why = format!("there is no {ABOUT}: not a folder that metal-marlin calibrate wrote");
            return Err(Bad::invalid(folder.display(), why).into());
        }
        let about: About = read_json(&path)?;
        if about.format != 1 {
            return Err(Bad::invalid(path.display(), format!("format {}, expected 1", about.format)).into());
        }
        let stats = Self { folder: folder.to_owned(), about };
        let missing = (0..stats.about.layers).map(Some).chain([None]).find(|i| !layer_path(folder, *i).exists());
        match missing {
            None => Ok(stats),
            Some(layer) => {
                let why = "is missing: the calibration was interrupted; run it again with --resume";
                Err(Bad::invalid(layer_path(folder, layer).display(), why).into())
            }
        }
    }

    /// Refuses statistics of another model.
    pub fn check(&self, checkpoint: &Checkpoint) -> Result<()> {
        if self.about.model_identity == identity(checkpoint)? {
            return Ok(());
        }
        let why =
            format!("these are statistics of {}, whose files are not those of {}", self.about.model, checkpoint.name);
        Err(Bad::invalid(self.folder.display(), why).into())
    }

    /// What layer `i` has seen.
    pub fn layer(&self, i: usize) -> Result<LayerStats> {
        read(&layer_path(&self.folder, Some(i)))
    }

    /// What the output projection has seen.
    pub fn head(&self) -> Result<LayerStats> {
        read(&layer_path(&self.folder, None))
    }
}

/// Writes statistics of `checkpoint` on `samples` to `folder`. What an interrupted run has left there is continued if
/// `resume`, and otherwise refused.
#[allow(clippy::too_many_arguments)] // one call of one command
pub fn calibrate<B: Backend>(
    backend: &B,
    compute: &dyn Compute,
    checkpoint: &Checkpoint,
    samples: &Samples,
    experts: ExpertInputs,
    folder: &Path,
    resume: bool,
    watch: Watch<'_>,
) -> Result<Stats> {
    let runner = Runner::new(backend, compute, checkpoint, &samples.windows, experts)?;
    let layers = runner.layers();
    let about = About::of(checkpoint, samples, layers, experts)?;
    std::fs::create_dir_all(folder).map_err(|e| Bad::io(folder, e))?;
    let lock = lock(folder)?;
    begin(folder, &about, resume)?;
    let done = (0..layers).take_while(|i| layer_path(folder, Some(*i)).exists()).count();
    let head = layer_path(folder, None);
    if done < layers || !head.exists() {
        // The newest states there are; a layer's statistics are written after the states behind it.
        let mut at = 0;
        let mut states = None;
        for layer in (0..=done).rev() {
            if let Some(found) = runner.found(folder, layer)? {
                (at, states) = (layer, Some(found));
                break;
            }
        }
        let mut states = match states {
            Some(states) => states,
            None => runner.embed(folder)?,
        };
        for layer in at..layers {
            let observed = layer >= done;
            let (stats, next) = runner.layer(layer, None, &mut states, observed, Some(folder), watch)?;
            if let Some(stats) = stats {
                write(&layer_path(folder, Some(layer)), &stats)?;
            }
            if let Some(next) = next {
                std::mem::replace(&mut states, next).remove();
            }
        }
        write(&head, &runner.head(&mut states, None)?)?;
        states.remove();
    }
    lock.release(folder);
    Stats::open(folder)
}

fn begin(folder: &Path, about: &About, resume: bool) -> Result<()> {
    let path = folder.join(ABOUT);
    if !path.exists() {
        let mut entries = std::fs::read_dir(folder).map_err(|e| Bad::io(folder, e))?;
        // A name that begins with a dot is a file that was not finished.
        if entries.any(|e| e.is_ok_and(|e| !e.file_name().to_string_lossy().starts_with('.'))) {
            let why = "is there already, and not empty; name another folder";
            return Err(Bad::invalid(folder.display(), why).into());
        }
        return write_json(&path, about);
    }
    if !resume {
        let why = "is there already and will not be overwritten; --resume continues an interrupted calibration";
        return Err(Bad::invalid(path.display(), why).into());
    }
    let found: About = read_json(&path)?;
    if found != *about {
        let why = "was begun with another model, text or settings; name another folder";
        return Err(Bad::invalid(path.display(), why).into());
    }
    Ok(())
}

/// `{module}` F32 `[in, in]` and `{module}.counts` F64 `[2]` (tokens, mass) for each input, `{router}.routed` I64
/// `[experts]` and `{router}.mass` F64 `[experts]`.
fn write(path: &Path, stats: &LayerStats) -> Result<()> {
    /// Bytes that are made when they are written: Hessians of many experts are gigabytes.
    type Data<'a> = Box<dyn Fn() -> Vec<u8> + 'a>;
    let mut tensors: Vec<(TensorInfo, Data<'_>)> = Vec::new();
    let info = |name, dtype, shape: Vec<usize>| TensorInfo { name, dtype, shape };
    let floats = |values: &[f64]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
    for (module, Routed { tokens, mass }) in &stats.routed {
        let counts = || tokens.iter().flat_map(|n| (*n as i64).to_le_bytes()).collect();
        tensors.push((info(format!("{module}.routed"), DType::I64, vec![tokens.len()]), Box::new(counts)));
        tensors.push((info(format!("{module}.mass"), DType::F64, vec![mass.len()]), Box::new(move || floats(mass))));
    }
    for (module, Moments { hessian, mass }) in &stats.moments {
        let counts = move || floats(&[hessian.tokens(), *mass]);
        tensors.push((info(format!("{module}.counts"), DType::F64, vec![2]), Box::new(counts)));
    }
    for (module, Moments { hessian, .. }) in &stats.moments {
        tensors.push((
            info(module.clone(), DType::F32, vec![hessian.size(); 2]),
            Box::new(|| bytes_of(hessian.sums().data())),
        ));
    }
    let metadata = BTreeMap::from([
        ("format".to_owned(), "metal-marlin stats 1".to_owned()),
        ("tokens".to_owned(), stats.tokens.to_string()),
        ("left_out".to_owned(), stats.left_out.to_string()),
    ]);
    let (infos, data): (Vec<TensorInfo>, Vec<Data<'_>>) = tensors.into_iter().unzip();
    write_tensors(path, &metadata, &infos, data.iter().map(|data| data()))
}

fn read(path: &Path) -> Result<LayerStats> {
    let store = Store::open(path)?;
    let bad = |why: String| Error::from(Bad::invalid(path.display(), why));
    let metadata = store.files().first().map(|f| f.metadata.clone()).unwrap_or_default();
    let number = |key: &str| {
        metadata.get(key).and_then(|v| v.parse().ok()).ok_or_else(|| bad(format!("its metadata has no number {key:?}")))
    };
    let mut stats = LayerStats { tokens: number("tokens")?, left_out: number("left_out")?, ..LayerStats::default() };
    let doubles = |name: &str| -> Result<Vec<f64>> {
        let tensor = store.tensor(name)?;
        match tensor.info.dtype {
            DType::F64 => Ok(tensor.data.as_chunks::<8>().0.iter().map(|b| f64::from_le_bytes(*b)).collect()),
            found => Err(Bad::DType { name: name.to_owned(), expected: "F64", found }.into()),
        }
    };
    for info in store.tensors() {
        if let Some(router) = info.name.strip_suffix(".routed") {
            let data = store.tensor(&info.name)?.data;
            let tokens = data.as_chunks::<8>().0.iter().map(|b| i64::from_le_bytes(*b).max(0) as u64).collect();
            let mass = doubles(&format!("{router}.mass"))?;
            stats.routed.insert(router.to_owned(), Routed { tokens, mass });
        } else if let (DType::F32, &[size, cols]) = (info.dtype, info.shape.as_slice()) {
            let tensor = store.tensor(&info.name)?;
            let sums = Matrix::new(size, cols, tensor.to_f32()?)?;
            tensor.data.release();
            let counts = doubles(&format!("{}.counts", info.name))?;
            let &[tokens, mass] = counts.as_slice() else {
                return Err(bad(format!("{}.counts: expected two numbers, found {}", info.name, counts.len())));
            };
            stats.moments.insert(info.name.clone(), Moments { hessian: Hessian::from_sums(sums, tokens)?, mass });
        }
    }
    Ok(stats)
}
