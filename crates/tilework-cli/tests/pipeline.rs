//! `tilework run` on several models, end to end, with a real ONNX Runtime.

mod common;

use std::fs;
use std::path::Path;

use common::{Folder, refused, stderr, stdout, tilework};
use serde_json::Value;

const SHAPES: [&str; 4] = ["--shape", "x=1x3x96x96", "--shape", "latent=1x4x8x8"];
const BUDGET: u64 = 300 << 20;

fn conv() -> String {
    format!("{}/../tilework-ort/tests/data/conv.onnx", env!("CARGO_MANIFEST_DIR"))
}

fn decoder() -> String {
    format!("{}/../../models/sdxl-vae-decoder.onnx", env!("CARGO_MANIFEST_DIR"))
}

fn json(arguments: &[&str]) -> Value {
    let output = tilework(["run", "--json"]).args(arguments).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn sum(models: &[Value], figure: &str) -> u64 {
    models.iter().map(|model| model[figure].as_u64().unwrap()).sum()
}

#[test]
fn models_that_do_not_fit_together_run_by_turns_with_the_bits_of_each_alone() {
    let folder = Folder::new();
    let picture = folder.path("p.svg");
    let (conv, decoder) = (conv(), decoder());
    let budget = BUDGET.to_string();
    let keep = folder.path("").display().to_string();
    let mut arguments = vec![&*decoder, &*conv, &*decoder];
    arguments.extend(SHAPES);
    arguments.extend(["--loop", "2", "--budget", &budget, "--keep", &keep, "--plot"]);
    let report = json(&[&arguments[..], &[picture.to_str().unwrap()]].concat());

    let models = report["models"].as_array().unwrap();
    let names: Vec<_> = models.iter().map(|model| model["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["sdxl-vae-decoder.onnx", "conv.onnx", "sdxl-vae-decoder.onnx #2"]);
    let weights = sum(models, "weights_bytes");
    assert!(weights > BUDGET, "else nothing has to leave: {weights}");
    assert!(report["peak_live_bytes"].as_u64().unwrap() > weights);
    assert!(report["peak_held_bytes"].as_u64().unwrap() <= BUDGET, "{report}");
    // One leaves while the second is loaded; each run of a decoder needs it back, and the other gone.
    assert!(models[0]["restores"].as_u64().unwrap() >= 2 && models[2]["restores"].as_u64().unwrap() >= 1);
    assert!(sum(models, "bytes_in") >= 3 * models[0]["weights_bytes"].as_u64().unwrap());
    assert_eq!(report["kept_bytes"].as_u64().unwrap(), sum(models, "kept_bytes"));
    copied_out_once(models);
    assert_eq!((&models[2]["residence"], &models[0]["residence"]), (&"resident".into(), &"evicted".into()));
    // Beside the small one there is room for a decoder, and beside a decoder for the small one.
    assert_eq!(found(models)[1], ["evicted", "arriving", "arriving"]);

    assert_eq!(report["outputs_agree"], true);
    for (file, shape, prints) in [(&decoder, &SHAPES[2..], &models[0]), (&conv, &SHAPES[..2], &models[1])] {
        let alone = json(&[&["--runs", "1", file], shape].concat());
        assert_eq!(alone["fingerprint"], prints["fingerprint"], "{file}");
    }
    assert_eq!(models[0]["fingerprint"], models[2]["fingerprint"]);

    let svg = fs::read_to_string(&picture).unwrap();
    for part in ["3 models on host, 300.00 MiB to hold", "sdxl-vae-decoder.onnx #2", "on the host", "pass 2"]
    {
        assert!(svg.contains(part), "{part:?}");
    }
}

/// Each model's weights left more than once, and were copied to the host the first time only.
fn copied_out_once(models: &[Value]) {
    for model in models {
        let figure = |name: &str| model[name].as_u64().unwrap();
        assert!(figure("evictions") >= 2, "{model}");
        assert_eq!(figure("bytes_out"), figure("kept_bytes"), "{model}");
        let weights = figure("weights_bytes");
        assert!((weights..weights + weights / 100 + 4096).contains(&figure("bytes_out")), "{model}");
    }
}

/// Where the weights of each model were when its turn came, pass by pass.
fn found(models: &[Value]) -> Vec<Vec<&str>> {
    let passes = models[0]["runs"].as_array().unwrap().len();
    let in_pass =
        |pass| models.iter().map(move |model: &Value| model["runs"][pass]["found"].as_str().unwrap());
    (0..passes).map(|pass| in_pass(pass).collect()).collect()
}

#[test]
fn the_next_model_is_on_its_way_when_its_turn_comes_if_it_fits_beside_the_one_that_runs() {
    let decoder = decoder();
    let models = ["--shape", "latent=1x4x8x8", "--loop", "3", &decoder, &decoder, &decoder];
    let run = |budget: &str| json(&[&models[..], &["--budget", budget]].concat());
    // Two models fit, and what a run takes beside them.
    let report = run("500MiB");
    // Until a model has run once, what a run takes is not known, and the next one stays where it is.
    let (away, coming) = ("evicted", "arriving");
    let expected = [[away; 3], [away, coming, coming], [coming; 3]];
    assert_eq!(found(report["models"].as_array().unwrap()), expected, "{report}");
    assert!(report["peak_held_bytes"].as_u64().unwrap() <= 500 << 20, "{report}");
    assert_eq!(report["outputs_agree"], true);
    copied_out_once(report["models"].as_array().unwrap());
    // One does: prefetching would take the memory of the one that runs.
    let alone = run("300MiB");
    assert!(
        found(alone["models"].as_array().unwrap()).iter().flatten().all(|&at| at == "evicted"),
        "{alone}"
    );
    // All do: there is nothing to prefetch.
    let together = run("2GiB");
    let together = together["models"].as_array().unwrap();
    assert!(found(together).iter().flatten().all(|&at| at == "resident"));
    assert_eq!(sum(together, "restores"), 0);
    // It costs no move more.
    let each = |report: &Value| sum(report["models"].as_array().unwrap(), "restores");
    assert!(each(&report) <= each(&alone), "{} and {}", each(&report), each(&alone));
}

#[test]
fn a_table_has_a_row_for_each_model_and_outputs_are_saved_by_model() {
    let folder = Folder::new();
    let conv = conv();
    let output = tilework(["run", &conv, &conv])
        .args(&SHAPES[..2])
        .arg("--save")
        .arg(folder.path("y.npy"))
        .arg("--record")
        .arg(folder.path("t.csv.gz"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let text = stdout(&output);
    for part in ["peak held", "kept on the host 0 B", "the same to the bit in every run"] {
        assert!(text.contains(part), "{part:?} in {text}");
    }
    for row in ["conv.onnx  ", "conv.onnx #2  "] {
        let row = text.lines().find(|line| line.starts_with(row)).unwrap();
        assert!(row.contains("resident") && row.contains(" 3 "), "{row}");
    }
    let saved = ["y.conv.onnx.npy", "y.conv.onnx#2.npy"].map(|name| fs::read(folder.path(name)).unwrap());
    assert!(saved[0].len() > 8 * 96 * 96 * 4 && saved[0] == saved[1]);
    let replayed = common::replay(&folder.path("t.csv.gz"), ["--verify"]);
    assert!(replayed.status.success(), "{}", stderr(&replayed));
}

#[test]
fn a_budget_below_one_model_names_both() {
    let conv = conv();
    let output = tilework(["run", "--budget", "4KiB", &conv]).args(&SHAPES[..2]).output().unwrap();
    let error = refused(&output, 1);
    assert!(
        error.contains(
            "the budget of 4.00 KiB is less than the weights of conv.onnx alone, which take at least"
        ),
        "{error}"
    );
    // Enough for the weights, and not for what a run needs beside them.
    let report = json(&[&["--budget", "1GiB", &conv], &SHAPES[..2]].concat());
    let budget = (report["peak_held_bytes"].as_u64().unwrap() / 2).to_string();
    let output = tilework(["run", "--budget", &budget, &conv]).args(&SHAPES[..2]).output().unwrap();
    let error = refused(&output, 1);
    assert!(error.contains("conv.onnx with ") && error.contains("does not run within"), "{error}");
    let spilled =
        tilework(["run", "--budget", &budget, "--spill", &conv]).args(&SHAPES[..2]).output().unwrap();
    assert!(spilled.status.success(), "{}", stderr(&spilled));
}

#[test]
fn wrong_use_is_told() {
    let conv = conv();
    let absent = Path::new("absent").display().to_string();
    for (arguments, says) in [
        (&["--keep", "ram"][..], "\"ram\" is no place to keep contents: write pinned=BYTES"),
        (&["--keep", &absent], "a directory that exists"),
        (&["--keep", "pinned=much"], "is no size"),
        (&["--loop", "0"], "0 is not in 1.."),
        (&["--manager", "bucketized"], "bucketized knows no groups"),
        (&["--shape", "z=1"], "none of the models has an input \"z\""),
        (&["--budget", "1GiB", "--limit", "1GiB"], "cannot be used with"),
    ] {
        let output = tilework(["run", &conv, &conv]).args(&SHAPES[..2]).args(arguments).output().unwrap();
        let error = refused(&output, 2);
        assert!(error.contains(says), "{arguments:?}: {error}");
    }
    assert_eq!(tilework(["run"]).output().unwrap().status.code(), Some(2), "no model");
}
