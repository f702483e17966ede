//! SLERP of two models equals the formula in double precision, tensor by tensor.

use ratoon::model::safetensors::WeightFiles;
use ratoon::prune::{Plan, prune};
use ratoon::train::slerp::slerp;
use std::path::{Path, PathBuf};

fn tiny(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tiny").join(name)
}

/// Two models of one shape with different weights: a four-block model without one block or another.
fn two_models(dir: &Path) -> [PathBuf; 2] {
    [0, 2].map(|block| {
        let target = dir.join(format!("without{block}"));
        let layers = ratoon::model::Config::load(&tiny("gqa")).unwrap().num_hidden_layers;
        prune(&tiny("gqa"), &Plan::new(&[block], layers, "--drop").unwrap(), &target, false).unwrap();
        target
    })
}

fn values(files: &WeightFiles, name: &str) -> Vec<f64> {
    files.tensor(name).unwrap().to_f32().f32().iter().map(|&v| f64::from(v)).collect()
}

#[test]
fn every_tensor_is_the_formula_in_double_precision() {
    let dir = tempfile::tempdir().unwrap();
    let [a, b] = two_models(dir.path());
    for t in [0.0, 0.25, 0.5, 1.0] {
        let out = dir.path().join("merged");
        let report = slerp(&a, &b, t, &out, true).unwrap();
        let [of_a, of_b, merged] = [&a, &b, &out].map(|dir| WeightFiles::open(dir).unwrap());
        assert_eq!(of_a.tensors.keys().collect::<Vec<_>>(), merged.tensors.keys().collect::<Vec<_>>());
        let mut spherical = 0;
        for name in of_a.tensors.keys() {
            let (x, y) = (values(&of_a, name), values(&of_b, name));
            let dot = |p: &[f64], q: &[f64]| p.iter().zip(q).map(|(p, q)| p * q).sum::<f64>();
            let cos = dot(&x, &y) / dot(&x, &x).sqrt() / dot(&y, &y).sqrt();
            let (s, r) = if cos.abs() > 0.9995 {
                (1.0 - t, t)
            } else {
                spherical += 1;
                let theta = cos.acos();
                (((1.0 - t) * theta).sin() / theta.sin(), (t * theta).sin() / theta.sin())
            };
            for (i, got) in values(&merged, name).into_iter().enumerate() {
                let want = s * x[i] + r * y[i];
                // Rounding to bf16 (8 bits) is the only error: half a unit in the last place.
                let error = (got - want).abs();
                assert!(error <= want.abs() * 2.0f64.powi(-8), "{name}[{i}] at t = {t}: {got} against {want}");
            }
        }
        assert!(spherical > 0 && spherical < of_a.tensors.len(), "both branches are used");
        if t != 0.0 && t != 1.0 {
            assert_eq!((report.spherical, report.linear), (spherical, of_a.tensors.len() - spherical));
        }
        if t == 0.0 {
            for name in of_a.tensors.keys() {
                assert_eq!(of_a.tensor(name).unwrap().bytes(), merged.tensor(name).unwrap().bytes());
            }
        }
        ratoon::model::Llama::load(&out).unwrap();
    }
}

#[test]
fn models_that_differ_are_refused_by_field_or_tensor() {
    let dir = tempfile::tempdir().unwrap();
    let [a, b] = two_models(dir.path());
    let out = dir.path().join("merged");
    let message = |a: &Path, b: &Path, t: f64| slerp(a, b, t, &out, false).unwrap_err().to_string();
    assert!(
        message(&a, &tiny("gqa"), 0.5).contains("num_hidden_layers: expected 3"),
        "{}",
        message(&a, &tiny("gqa"), 0.5)
    );
    assert!(message(&a, &tiny("odd_sizes"), 0.5).contains("hidden_size"));
    assert!(message(&a, &b, 1.5).starts_with("--t"));
    assert!(message(&a, &b, f64::NAN).starts_with("--t"));
    assert!(!out.exists());
    assert_eq!(slerp(&a, &b, 0.5, &b, true).unwrap_err().exit_code(), 2, "a source is never replaced");
}
