//! What formats store: plain weights, stacks of experts made and taken apart.

use crate::common::{marlin, root};
use crate::{files, original, path, quantise, text};
use marlin_checkpoint::{Store, TensorSource};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

#[test]
fn plain_weights_come_through_unchanged() {
    let folder = tempfile::tempdir().unwrap();
    let (text, out) = (text(folder.path()), path(folder.path(), "out"));
    marlin(&quantise(&text, &out, &["--format", "bf16"])).ok();
    let (plain, written) = (Store::open(Path::new(original())).unwrap(), Store::open(Path::new(&out)).unwrap());
    assert_eq!(plain.tensors().len(), written.tensors().len());
    for info in plain.tensors() {
        let (a, b) = (plain.tensor(&info.name).unwrap(), written.tensor(&info.name).unwrap());
        assert_eq!((&a.info, *a.data == *b.data), (&b.info, true), "{}", info.name);
    }
    assert!(written.files().len() > 3);
    let kld = marlin(&["eval", "kld", original(), &out, "--text", &text, "--json"]).json();
    assert_eq!((kld["mean"].as_f64(), kld["top1_agreement"].as_f64()), (Some(0.0), Some(1.0)));
    assert_eq!(kld["flips"]["tokens"].as_f64(), Some(0.0));
    marlin(&["verify", &out]).ok();
}

#[test]
fn experts_are_stacked_for_mlx() {
    let folder = tempfile::tempdir().unwrap();
    let (text, plan) = (text(folder.path()), path(folder.path(), "plan.txt"));
    let [out, stats, mixed] = ["out", "stats", "mixed"].map(|name| path(folder.path(), name));
    marlin(&["quantize", original(), "--format", "mlx", "--bits", "4", "-o", &out]).ok();
    let (plain, written) = (Store::open(Path::new(original())).unwrap(), Store::open(Path::new(&out)).unwrap());
    let names: Vec<&str> =
        written.tensors().iter().map(|t| t.name.as_str()).filter(|n| n.contains("experts.")).collect();
    assert!(names.iter().all(|name| name.contains("shared_experts")), "{names:?}");
    let mlp = "model.layers.2.mlp";
    let part = |name: &str| written.tensor(&format!("{mlp}.switch_mlp.up_proj.{name}")).unwrap();
    assert_eq!(part("weight").info.shape, [16, 128, 32]);
    let (scales, biases) = (part("scales").to_f32().unwrap(), part("biases").to_f32().unwrap());
    let codes = part("weight").data;
    // The squared error of Gaussian weights at these settings is .008 of their square.
    for expert in 0..16 {
        let name = format!("{mlp}.experts.{expert}.up_proj.weight");
        let weights = plain.tensor(&name).unwrap().to_f32().unwrap();
        let (mut error, mut square) = (0.0, 0.0);
        for (i, weight) in weights.iter().enumerate() {
            let at = expert * weights.len() + i;
            let code = codes[at / 2] >> (4 * (at % 2)) & 15;
            error += (scales[at / 64] * f32::from(code) + biases[at / 64] - weight).powi(2);
            square += weight.powi(2);
        }
        assert!((0.004..0.012).contains(&(error / square)), "{name}: {}", error / square);
    }
    marlin(&["verify", &out]).ok();
    let report = std::fs::read_to_string(Path::new(&out).join("report.json")).unwrap();
    assert_eq!(report.matches("experts.15.up_proj").count(), 5);

    // Bits between whole ones: the experts of a stack have the same.
    let small = ["--samples", "3", "--length", "64"];
    marlin(&[&["calibrate", original(), "--text", &text, "-o", &stats][..], &small].concat()).ok();
    let with = ["--bits", "3.5", "--stats", &stats, "-o", &plan];
    marlin(&[&["quantize", "plan", original(), "--format", "mlx"][..], &with].concat()).ok();
    marlin(&["quantize", "apply", &plan, original(), "--stats", &stats, "-o", &mixed]).ok();
    marlin(&["verify", &mixed]).ok();
    let text = std::fs::read_to_string(&plan).unwrap();
    let (line, own): (String, &str) = text
        .lines()
        .find_map(|line| {
            Some((line.to_owned(), line.strip_prefix("model.layers.2.mlp.experts.3 ")?.split(' ').next()?))
        })
        .unwrap();
    let other = if own.ends_with('3') { "gate_proj=4" } else { "gate_proj=3" };
    std::fs::write(&plan, text.replace(&line, &line.replace(own, other))).unwrap();
    let refused = marlin(&["quantize", "apply", &plan, original(), "--stats", &stats, "-o", &out]).error(1);
    assert!(refused.contains("will not be overwritten"), "{refused}");
    let third = path(folder.path(), "third");
    let refused = marlin(&["quantize", "apply", &plan, original(), "--stats", &stats, "-o", &third]).error(1);
    assert!(refused.contains("keeps both in one stack, model.layers.2.mlp.switch_mlp.gate_proj"), "{refused}");
}

/// The built-in model with the gate and up projections of all experts of a layer in one tensor, and the down projections,
/// these as F32.
fn stacked(folder: &Path) -> PathBuf {
    let from = root().join("models/fable-glm4-moe-lite");
    let to = folder.join("stacked");
    std::fs::create_dir(&to).unwrap();
    for (name, contents) in files(&from) {
        std::fs::write(to.join(name), contents).unwrap();
    }
    let store = Store::open(&from).unwrap();
    let mut tensors: BTreeMap<String, (String, Vec<usize>, Vec<u8>)> = BTreeMap::new();
    for info in store.tensors() {
        let expert = info.name.split_once(".experts.").and_then(|(owner, rest)| {
            let (index, part) = rest.split_once('.')?;
            Some((owner, index.parse::<usize>().ok()?, part))
        });
        let data = |name: &str| store.tensor(name).unwrap().data.to_vec();
        match expert {
            None => {
                let dtype = info.dtype.name().to_owned();
                tensors.insert(info.name.clone(), (dtype, info.shape.clone(), data(&info.name)));
            }
            Some((owner, 0, part)) if part != "up_proj.weight" => {
                let (name, parts): (&str, &[&str]) = match part {
                    "down_proj.weight" => ("down_proj", &["down_proj"]),
                    _ => ("gate_up_proj", &["gate_proj", "up_proj"]),
                };
                let experts = 16;
                let wide = name == "down_proj";
                let all: Vec<u8> = (0..experts)
                    .flat_map(|e| parts.iter().map(move |p| format!("{owner}.experts.{e}.{p}.weight")))
                    .flat_map(|name| data(&name))
                    .collect();
                let shape = vec![experts, parts.len() * info.shape[0], info.shape[1]];
                // The upper half of an F32 is a BF16.
                let all = if wide { all.chunks_exact(2).flat_map(|b| [0, 0, b[0], b[1]]).collect() } else { all };
                let dtype = if wide { "F32" } else { info.dtype.name() };
                tensors.insert(format!("{owner}.experts.{name}"), (dtype.to_owned(), shape, all));
            }
            Some(_) => {}
        }
    }
    let (mut header, mut body) = (serde_json::Map::new(), Vec::new());
    for (name, (dtype, shape, data)) in tensors {
        let range = [body.len(), body.len() + data.len()];
        body.extend(data);
        header.insert(name, serde_json::json!({ "dtype": dtype, "shape": shape, "data_offsets": range }));
    }
    let header = serde_json::to_vec(&header).unwrap();
    let whole = [&(header.len() as u64).to_le_bytes(), header.as_slice(), &body].concat();
    std::fs::write(to.join("model.safetensors"), whole).unwrap();
    to
}

#[test]
fn stacks_of_experts_are_taken_apart() {
    let folder = tempfile::tempdir().unwrap();
    let (plain, out) = (path(folder.path(), "plain"), path(folder.path(), "out"));
    let model = stacked(folder.path()).to_string_lossy().into_owned();
    for (model, out) in [(original(), &plain), (&model, &out)] {
        marlin(&["quantize", model, "--format", "gptq", "--bits", "ffn_gate=4", "--group", "64", "-o", out]).ok();
    }
    let (a, b) = (Store::open(Path::new(&plain)).unwrap(), Store::open(Path::new(&out)).unwrap());
    let names =
        |store: &Store| store.tensors().iter().map(|t| t.name.clone()).collect::<std::collections::BTreeSet<_>>();
    assert_eq!(names(&a), names(&b));
    assert!(names(&b).contains("model.layers.1.mlp.experts.3.up_proj.weight"));
    for info in a.tensors() {
        let (a, b) = (a.tensor(&info.name).unwrap(), b.tensor(&info.name).unwrap());
        if info.name.contains(".experts.") && info.name.ends_with("down_proj.weight") {
            assert_eq!((a.info.dtype.name(), b.info.dtype.name()), ("BF16", "F32"), "{}", info.name);
            assert_eq!(a.to_f32().unwrap(), b.to_f32().unwrap(), "{}", info.name);
            continue;
        }
        assert_eq!((&a.info, *a.data == *b.data), (&b.info, true), "{}", info.name);
    }
}
