//! What `config.json` says of quantised modules, as each family of formats has it.

use serde_json::{Map, Value, json};

use super::{Format, Grouped, Order, Rounder};
use crate::{Error, Result};

/// Keys of `config.json` and their values.
pub type Settings = Map<String, Value>;

/// Formats whose modules can stand in one checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    Gptq,
    CompressedTensors,
    Mlx,
    Fp4,
}

fn family(format: Format) -> Family {
    match format {
        Format::Gptq { .. } => Family::Gptq,
        Format::Packed { .. } | Format::Nvfp4 | Format::Mxfp4 => Family::CompressedTensors,
        Format::Mlx { .. } | Format::MlxMxfp4 => Family::Mlx,
        Format::Fp4 { .. } => Family::Fp4,
    }
}

/// The settings of a checkpoint with these modules, named as in the file: each with its quantiser, or `None` if it is a
/// linear (or embedding) that is left as it is. Modules may differ within a family of formats (compressed-tensors' groups of
/// modules, MLX's entries for a path, GPTQModel's `dynamic`); formats of different families are refused, as nothing reads
/// them together.
pub fn settings(modules: &[(String, Option<Grouped>)]) -> Result<Settings> {
    let quantised: Vec<(&str, Grouped)> =
        modules.iter().filter_map(|(name, method)| Some((name.as_str(), (*method)?))).collect();
    let Some((first, method)) = quantised.first() else {
        return Err(Error::setting("modules", "at least one that is quantised", "none"));
    };
    let whole = family(method.format);
    if let Some((name, other)) = quantised.iter().find(|(_, m)| family(m.format) != whole) {
        let why = format!(
            "{} cannot stand in one checkpoint with {} of {first}; choose formats of one family",
            other.format.name(),
            method.format.name()
        );
        return Err(Error::Module { module: (*name).to_owned(), why });
    }
    let left = modules.iter().filter(|(_, method)| method.is_none()).map(|(name, _)| name.as_str());
    Ok(match whole {
        Family::Gptq => one("quantization_config", gptq(&quantised, left)),
        Family::CompressedTensors => one("quantization_config", compressed(&quantised, left)),
        Family::Mlx => {
            // mlx-lm writes, and looks for, both keys.
            let value = mlx(&quantised);
            let mut both = one("quantization", value.clone());
            both.insert("quantization_config".to_owned(), value);
            both
        }
        Family::Fp4 => {
            let Format::Fp4 { group, .. } = common(&quantised, |m| m.format).0 else { return Ok(Map::new()) };
            one("quantization_config", json!({ "quant_method": "mmfp4", "bits": 4, "group_size": group }))
        }
    })
}

fn one(key: &str, value: Value) -> Settings {
    Map::from_iter([(key.to_owned(), value)])
}

/// A value that modules have, and their names.
type Class<'a, T> = (T, Vec<&'a str>);

/// Each value of `of` with the modules that have it, the most frequent first, then in order of appearance.
fn classes<'a, T: PartialEq>(modules: &[(&'a str, Grouped)], of: impl Fn(Grouped) -> T) -> Vec<Class<'a, T>> {
    let mut classes: Vec<Class<'a, T>> = Vec::new();
    for (name, method) in modules {
        let value = of(*method);
        match classes.iter_mut().find(|(known, _)| *known == value) {
            Some((_, names)) => names.push(name),
            None => classes.push((value, vec![name])),
        }
    }
    classes.sort_by_key(|(_, names)| std::cmp::Reverse(names.len()));
    classes
}

/// The most frequent value, and the modules that have another.
fn common<'a, T: PartialEq>(modules: &[(&'a str, Grouped)], of: impl Fn(Grouped) -> T) -> (T, Vec<Class<'a, T>>) {
    let mut classes = classes(modules, of);
    let first = classes.remove(0).0;
    (first, classes)
}

fn gptq<'a>(quantised: &[(&str, Grouped)], left: impl Iterator<Item = &'a str>) -> Value {
    let of = |m: Grouped| {
        let Format::Gptq { bits, symmetric, group } = m.format else { return (0, false, None, false) };
        let indexed = matches!(m.rounder, Rounder::Gptq { order: Order::ActivationGroups, .. });
        (bits, symmetric, group, indexed)
    };
    let size = |group: Option<usize>| group.map_or(json!(-1), |g| json!(g));
    let ((bits, symmetric, group, indexed), others) = common(quantised, of);
    let exact = |sign: &str, name: &str| format!("{sign}:^{}$", name.replace('.', "\\."));
    let mut dynamic = Map::new();
    for ((bits, symmetric, group, indexed), names) in others {
        for name in names {
            let value = json!({ "bits": bits, "group_size": size(group), "sym": symmetric, "desc_act": indexed });
            dynamic.insert(exact("+", name), value);
        }
    }
    dynamic.extend(left.map(|name| (exact("-", name), json!({}))));
    let damping = quantised.iter().find_map(|(_, m)| match m.rounder {
        Rounder::Gptq { damping, .. } => Some(damping),
        Rounder::Nearest => None,
    });
    let mut value = json!({
        "quant_method": "gptq",
        "bits": bits,
        "group_size": size(group),
        "sym": symmetric,
        "desc_act": indexed,
        "lm_head": quantised.iter().any(|(name, _)| *name == "lm_head"),
        "damp_percent": damping.map_or(Value::Null, |d| json!((f64::from(d) * 1e6).round() / 1e6)),
        "checkpoint_format": "gptq",
    });
    if let Some(map) = value.as_object_mut().filter(|_| !dynamic.is_empty()) {
        map.insert("dynamic".to_owned(), Value::Object(dynamic));
    }
    value
}

fn compressed<'a>(quantised: &[(&str, Grouped)], left: impl Iterator<Item = &'a str>) -> Value {
    let of = |m: Grouped| {
        let ordered = matches!(m.rounder, Rounder::Gptq { order: Order::Activation, .. });
        let (weights, format) = match m.format {
            Format::Packed { bits, symmetric, group } => {
                let strategy = if group.is_some() { "group" } else { "channel" };
                let value = json!({
                    "num_bits": bits, "type": "int", "symmetric": symmetric, "strategy": strategy, "group_size": group,
                    "actorder": if ordered { json!("static") } else { Value::Null }, "dynamic": false
                });
                (value, "pack-quantized")
            }
            Format::Nvfp4 => (float("tensor_group", 16), "nvfp4-pack-quantized"),
            _ => (float("group", 32), "mxfp4-pack-quantized"),
        };
        (weights, format)
    };
    let classes = classes(quantised, of);
    let same = classes.iter().all(|((_, format), _)| *format == classes[0].0.1);
    let format = if same { classes[0].0.1 } else { "mixed-precision" };
    let groups: Map<String, Value> = classes
        .into_iter()
        .enumerate()
        .map(|(i, ((weights, format), names))| {
            // A module's own name goes before its kind.
            let targets = if i == 0 { json!(["Linear"]) } else { json!(names) };
            (format!("group_{i}"), json!({ "targets": targets, "weights": weights, "format": format }))
        })
        .collect();
    json!({
        "quant_method": "compressed-tensors",
        "format": format,
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": left.collect::<Vec<_>>(),
    })
}

fn float(strategy: &str, group: usize) -> Value {
    json!({
        "num_bits": 4, "type": "float", "symmetric": true, "strategy": strategy, "group_size": group, "dynamic": false
    })
}

fn mlx(quantised: &[(&str, Grouped)]) -> Value {
    let of = |m: Grouped| match m.format {
        Format::Mlx { bits, group, .. } => json!({ "group_size": group, "bits": bits, "mode": "affine" }),
        _ => json!({ "group_size": 32, "bits": 4, "mode": "mxfp4" }),
    };
    let (mut value, others) = common(quantised, of);
    if let Some(map) = value.as_object_mut() {
        for (own, names) in others {
            map.extend(names.into_iter().map(|name| (name.to_owned(), own.clone())));
        }
    }
    value
}
