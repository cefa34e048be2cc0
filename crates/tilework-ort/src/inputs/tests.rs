use super::*;

fn spec(name: &str, element: ElementType, dims: &[Dim]) -> TensorSpec {
    TensorSpec { name: name.into(), element: Ok(element), dims: dims.to_vec() }
}

fn latent() -> Vec<TensorSpec> {
    let dims = [Dim::Fixed(1), Dim::Fixed(4), Dim::Named("H".into()), Dim::Any];
    vec![spec("latent", ElementType::F32, &dims)]
}

fn shapes(name: &str, shape: &[u64]) -> Shapes {
    Shapes::from([(name.to_owned(), shape.to_vec())])
}

#[test]
fn the_same_seed_gives_the_same_values_and_another_others() {
    let make = |seed| {
        let inputs = random(&latent(), &shapes("latent", &[1, 4, 8, 8]), seed).unwrap();
        inputs[0].1.bytes().to_vec()
    };
    assert_eq!(make(1), make(1));
    assert_ne!(make(1), make(2));
}

#[test]
fn floats_are_standard_normal() {
    let inputs = random(&latent(), &shapes("latent", &[1, 4, 64, 64]), 7).unwrap();
    let values: Vec<f64> = inputs[0]
        .1
        .bytes()
        .chunks_exact(4)
        .map(|b| f64::from(f32::from_ne_bytes(b.try_into().unwrap())))
        .collect();
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    let deviation = (values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / values.len() as f64).sqrt();
    assert!(mean.abs() < 0.03 && (deviation - 1.0).abs() < 0.03, "{mean} {deviation}");
}

#[test]
fn integers_stay_small_and_masks_are_set() {
    let specs = [
        spec("ids", ElementType::I64, &[Dim::Fixed(100)]),
        spec("mask", ElementType::Bool, &[Dim::Fixed(3)]),
    ];
    let inputs = random(&specs, &Shapes::new(), 0).unwrap();
    for value in inputs[0].1.bytes().chunks_exact(8) {
        assert!(u64::from_ne_bytes(value.try_into().unwrap()) < INTEGER_BOUND);
    }
    assert_eq!(inputs[1].1.bytes(), [1, 1, 1]);
}

#[test]
fn a_missing_shape_names_the_inputs() {
    let error = random(&latent(), &Shapes::new(), 0).unwrap_err().to_string();
    assert!(error.contains("--shape latent=") && error.contains("latent: f32 1x4xHx?"), "{error}");
}

#[test]
fn a_wrong_shape_names_the_inputs() {
    for shape in [&[1, 3, 8, 8][..], &[1, 4, 8]] {
        let error = random(&latent(), &shapes("latent", shape), 0).unwrap_err().to_string();
        assert!(error.contains("latent: f32 1x4xHx?"), "{error}");
    }
}

#[test]
fn a_shape_of_nothing_is_refused_and_a_tensor_of_nothing_taken() {
    let error = random(&latent(), &shapes("latent", &[1, 4, 0, 8]), 0).unwrap_err().to_string();
    assert!(error.contains("was given 1x4x0x8, a shape without elements"), "{error}");
    assert!(error.contains("latent: f32 1x4xHx?"), "{error}");
    let empty = Tensor::zeros(ElementType::F32, &[1, 4, 0, 8]).unwrap();
    assert!(prepare(&latent(), &Shapes::new(), BTreeMap::from([("latent".into(), empty)]), 0).is_ok());
    // What the model itself wants empty is no mistake.
    let specs = [spec("past", ElementType::F32, &[Dim::Fixed(0), Dim::Any])];
    assert!(random(&specs, &shapes("past", &[0, 8]), 0).is_ok());
}

#[test]
fn a_shape_and_a_tensor_that_disagree_are_both_named() {
    let tensor = |shape: &[u64]| Tensor::zeros(ElementType::F32, shape).unwrap();
    let given = |shape: &[u64]| BTreeMap::from([("latent".to_owned(), tensor(shape))]);
    let asked = shapes("latent", &[1, 4, 8, 8]);
    let error = prepare(&latent(), &asked, given(&[1, 4, 9, 9]), 0).unwrap_err().to_string();
    assert!(error.contains("both the shape 1x4x8x8 and a tensor of f32 1x4x9x9, which disagree"), "{error}");
    assert!(prepare(&latent(), &asked, given(&[1, 4, 8, 8]), 0).is_ok());
}

#[test]
fn an_unknown_input_names_the_inputs() {
    let error = random(&latent(), &shapes("image", &[1]), 0).unwrap_err().to_string();
    assert!(error.contains("no input \"image\"") && error.contains("latent: f32"), "{error}");
}

#[test]
fn a_given_tensor_must_fit() {
    let given = |t| BTreeMap::from([("latent".to_owned(), t)]);
    let half = Tensor::zeros(ElementType::F16, &[1, 4, 8, 8]).unwrap();
    let error = prepare(&latent(), &Shapes::new(), given(half), 0).unwrap_err().to_string();
    assert!(error.contains("was given f16 1x4x8x8"), "{error}");
    let fits = Tensor::zeros(ElementType::F32, &[1, 4, 8, 8]).unwrap();
    assert!(prepare(&latent(), &Shapes::new(), given(fits), 0).is_ok());
}

#[test]
fn a_named_dimension_settles_another_input() {
    let specs = [
        spec("a", ElementType::F32, &[Dim::Named("N".into())]),
        spec("b", ElementType::I64, &[Dim::Fixed(2), Dim::Named("N".into())]),
    ];
    let inputs = random(&specs, &shapes("a", &[5]), 0).unwrap();
    assert_eq!(inputs[1].1.shape(), [2, 5]);
    let mut both = shapes("a", &[5]);
    both.insert("b".into(), vec![2, 6]);
    assert!(matches!(random(&specs, &both, 0), Err(Error::WrongInput { .. })));
}

#[test]
fn half_precision_is_rounded_to_even() {
    for (value, bits) in [
        (0.0, 0x0000),
        (-0.0, 0x8000),
        (1.0, 0x3c00),
        (-2.0, 0xc000),
        (65504.0, 0x7bff),
        (0.333_251_95, 0x3555),
        (1.0 + 1.0 / 2048.0, 0x3c00),
        (1.0 + 3.0 / 2048.0, 0x3c02),
        (5.960_464_5e-8, 0x0001),
        (6.103_515_6e-5, 0x0400),
    ] {
        assert_eq!(f16_bits(value), bits, "{value}");
    }
}
