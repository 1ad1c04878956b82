//! Settings against what the tools' documents ask for.

use serde_json::{Value, json};

use crate::grouped::{Factor, Format, Grouped, Order, Rounder, Rounding, settings};

fn method(format: Format) -> Option<Grouped> {
    Some(Grouped { format, factor: Factor::Search, rounder: Rounder::GPTQ })
}

fn of(modules: &[(&str, Option<Grouped>)]) -> Value {
    let modules: Vec<_> = modules.iter().map(|(name, method)| ((*name).to_owned(), *method)).collect();
    Value::Object(settings(&modules).unwrap())
}

#[test]
fn gptq_with_exceptions() {
    let format = |bits, group| method(Format::Gptq { bits, symmetric: true, group });
    let found = of(&[
        ("model.layers.0.q_proj", format(4, Some(128))),
        ("model.layers.0.k_proj", format(4, Some(128))),
        ("model.layers.0.v_proj", format(8, None)),
        ("model.layers.0.mlp.gate", None),
    ]);
    assert_eq!(
        found,
        json!({ "quantization_config": {
            "quant_method": "gptq", "bits": 4, "group_size": 128, "sym": true, "desc_act": false, "lm_head": false,
            "damp_percent": 0.01, "checkpoint_format": "gptq",
            "dynamic": {
                "+:^model\\.layers\\.0\\.v_proj$": { "bits": 8, "group_size": -1, "sym": true, "desc_act": false },
                "-:^model\\.layers\\.0\\.mlp\\.gate$": {}
            }
        } })
    );
    let indexed = Grouped {
        format: Format::Gptq { bits: 3, symmetric: false, group: None },
        factor: Factor::Largest,
        rounder: Rounder::Gptq { damping: 0.05, order: Order::ActivationGroups },
    };
    let found = of(&[("lm_head", Some(indexed))]);
    let found = &found["quantization_config"];
    assert_eq!((&found["desc_act"], &found["lm_head"], &found["sym"]), (&json!(true), &json!(true), &json!(false)));
    assert_eq!((&found["group_size"], &found["damp_percent"]), (&json!(-1), &json!(0.05)));
    assert!(found.get("dynamic").is_none());
}

#[test]
fn compressed_tensors_in_groups() {
    let packed = |bits| method(Format::Packed { bits, symmetric: false, group: Some(64) });
    let found = of(&[("a", packed(4)), ("b", packed(3)), ("c", packed(3)), ("router", None)]);
    let found = &found["quantization_config"];
    assert_eq!(found["format"], "pack-quantized");
    assert_eq!(found["ignore"], json!(["router"]));
    let groups = &found["config_groups"];
    assert_eq!((&groups["group_0"]["targets"], &groups["group_1"]["targets"]), (&json!(["Linear"]), &json!(["a"])));
    let weights = &groups["group_0"]["weights"];
    assert_eq!(
        (&weights["num_bits"], &weights["strategy"], &weights["symmetric"]),
        (&json!(3), &json!("group"), &json!(false))
    );
    assert_eq!(groups["group_1"]["weights"]["num_bits"], 4);
    let found = of(&[("a", method(Format::Nvfp4)), ("b", method(Format::Mxfp4)), ("c", method(Format::Nvfp4))]);
    let found = &found["quantization_config"];
    assert_eq!(found["format"], "mixed-precision");
    assert_eq!(found["config_groups"]["group_0"]["format"], "nvfp4-pack-quantized");
    assert_eq!(found["config_groups"]["group_0"]["weights"]["strategy"], "tensor_group");
    assert_eq!(found["config_groups"]["group_1"]["format"], "mxfp4-pack-quantized");
    assert_eq!(found["config_groups"]["group_1"]["weights"]["group_size"], 32);
    let channel = of(&[("a", method(Format::Packed { bits: 8, symmetric: true, group: None }))]);
    let weights = &channel["quantization_config"]["config_groups"]["group_0"]["weights"];
    assert_eq!((&weights["strategy"], &weights["group_size"]), (&json!("channel"), &Value::Null));
}

#[test]
fn mlx_by_path_and_fp4() {
    let mlx = |bits| method(Format::Mlx { bits, group: 64, rounding: Rounding::BF16 });
    let found = of(&[("a", mlx(4)), ("b", mlx(4)), ("c", mlx(6)), ("d", method(Format::MlxMxfp4)), ("e", None)]);
    let expected = json!({
        "group_size": 64, "bits": 4, "mode": "affine",
        "c": { "group_size": 64, "bits": 6, "mode": "affine" },
        "d": { "group_size": 32, "bits": 4, "mode": "mxfp4" }
    });
    assert_eq!(found, json!({ "quantization": expected, "quantization_config": expected }));
    let fp4 = |group| method(Format::Fp4 { group, rotation: Some(64) });
    let found = of(&[("a", fp4(64)), ("b", fp4(128)), ("c", fp4(128))]);
    assert_eq!(found, json!({ "quantization_config": { "quant_method": "mmfp4", "bits": 4, "group_size": 128 } }));
}

#[test]
fn families_do_not_mix() {
    let modules = [("a".to_owned(), method(Format::Nvfp4)), ("b".to_owned(), method(Format::MlxMxfp4))];
    let refused = settings(&modules).unwrap_err().to_string();
    assert!(refused.contains("b: mlx mxfp4 cannot stand in one checkpoint with nvfp4 of a"), "{refused}");
    assert!(settings(&[("a".to_owned(), None)]).is_err());
}
