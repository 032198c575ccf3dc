//! Every way to compute a product gives the bits of the plain one, which is near the product of floats.

use super::*;
use crate::matmul::{Matrix, matmul as plain_matmul};

fn numbers(count: usize, seed: u64) -> Vec<f32> {
    (0..count).map(|i| crate::sampling::uniform(seed, i as u64) as f32 - 0.5).collect()
}

/// Shapes: rows, outputs, inputs. Panels, groups and blocks of rows that are not full are among them.
const SHAPES: [(usize, usize, usize); 8] = [
    (1, 16, 32),
    (1, 33, 7),
    (2, 100, 40),
    (8, 64, 96),
    (9, 31, 129),
    (17, 70, 2100),
    (100, 96, 64),
    (3, 1, 384),
];

fn compute(
    way: (Isa, IntegerIsa),
    threads: usize,
    product: &QuantizedProduct<'_>,
    (stride, offset): (usize, usize),
) -> Vec<u32> {
    let pool = ComputePool::new(threads);
    let mut values = vec![7.0; product.rows * stride];
    let target = OutputColumns { values: &mut values, stride, offset };
    pool.enter(|| matmul_with(way, &pool, product, target));
    values.iter().map(|value| value.to_bits()).collect()
}

#[test]
fn every_instruction_set_thread_count_and_batch_gives_the_same_bits() {
    for (rows, outputs, inputs) in SHAPES {
        let (input, weights) = (numbers(rows * inputs, 1), numbers(outputs * inputs, 2));
        let (bias, bytes) = (numbers(outputs, 3), quantize(&Matrix::from_f32(&weights, outputs, inputs)));
        let weight = QuantizedMatrix::new(&bytes, outputs, inputs);
        for activation in [Activation::None, Activation::Gelu] {
            let whole = Product { input: &input, rows, weight, bias: Some(&bias), activation };
            let place = (outputs + 5, 3);
            let portable = *IntegerIsa::available().last().expect("plain code");
            let plain = *Isa::available().last().expect("plain code");
            let expected = compute((plain, portable), 1, &whole, place);
            for isa in Isa::available() {
                for integers in IntegerIsa::available() {
                    for threads in [1, 3] {
                        let found = compute((isa, integers), threads, &whole, place);
                        let way = (isa.name(), integers.name(), threads);
                        assert_eq!(found, expected, "{way:?} {rows}x{outputs}x{inputs}");
                    }
                }
            }
            for row in 0..rows {
                let input = &input[row * inputs..][..inputs];
                let alone = Product { input, rows: 1, ..whole };
                let found = compute((Isa::best(), IntegerIsa::within(Isa::best())), 1, &alone, place);
                assert_eq!(found, expected[row * place.0..][..place.0], "row {row} alone");
            }
        }
    }
}

/// The error of a quantised number is half a step of at most 1/127 of the largest in its group.
#[test]
fn a_product_is_near_that_of_floats() {
    let (rows, outputs, inputs) = (5, 48, 512);
    let (input, weights) = (numbers(rows * inputs, 4), numbers(outputs * inputs, 5));
    let matrix = Matrix::from_f32(&weights, outputs, inputs);
    let bytes = quantize(&matrix);
    let pool = ComputePool::new(1);
    let (mut found, mut expected) = (vec![0.0; rows * outputs], vec![0.0; rows * outputs]);
    let weight = QuantizedMatrix::new(&bytes, outputs, inputs);
    let quantized = Product { input: &input, rows, weight, bias: None, activation: Activation::None };
    let plain = Product { input: &input, rows, weight: matrix, bias: None, activation: Activation::None };
    matmul(Isa::best(), &pool, &quantized, OutputColumns { values: &mut found, stride: outputs, offset: 0 });
    plain_matmul(
        Isa::best(),
        &pool,
        &plain,
        OutputColumns { values: &mut expected, stride: outputs, offset: 0 },
    );
    let square = |values: &[f32]| values.iter().map(|value| value * value).sum::<f32>();
    let errors: Vec<f32> = found.iter().zip(&expected).map(|(one, other)| one - other).collect();
    let relative = (square(&errors) / square(&expected)).sqrt();
    assert!(relative < 0.01, "the relative error is {relative}");
    assert!(relative > 1e-5, "the product was quantised");
}

#[test]
fn quantised_rows_are_read_back_within_half_a_step() {
    let (outputs, inputs) = (19, 70);
    let weights = numbers(outputs * inputs, 6);
    let bytes = quantize(&Matrix::from_f32(&weights, outputs, inputs));
    let matrix = QuantizedMatrix::new(&bytes, outputs, inputs);
    let mut row = vec![0.0; inputs];
    for (output, weights) in weights.chunks_exact(inputs).enumerate() {
        matrix.copy_row(output, &mut row);
        for (found, expected) in row.chunks(GROUP).zip(weights.chunks(GROUP)) {
            let most = expected.iter().fold(0.0_f32, |most, value| most.max(value.abs()));
            for (found, expected) in found.iter().zip(expected) {
                // Half a step, and what the rounding of the scale to 11 bits moves the largest by.
                assert!(
                    (found - expected).abs() <= most / 127.0 * 0.51 + most / 2048.0,
                    "{found} {expected}"
                );
            }
        }
    }
}

#[test]
fn the_bytes_of_a_matrix_are_pinned() {
    let weights: Vec<f32> = (0..17 * 33).map(|i| ((i * 37 % 101) as f32 - 50.0) / 64.0).collect();
    let bytes = quantize(&Matrix::from_f32(&weights, 17, 33));
    assert_eq!(QuantizedMatrix::dimensions(17, 33), [2, 2, 544]);
    assert_eq!(bytes.len(), 4 * 544);
    // FNV-1a, which needs no crate.
    let digest = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |digest, byte| {
        (digest ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    assert_eq!(digest, 0xb23e_f87b_1ec1_6c7a, "{digest:#x}");
}

/// Zeros, tiny numbers and huge ones are quantised; a number that is not finite is not hidden.
#[test]
fn extreme_numbers_keep_their_meaning() {
    let (outputs, inputs) = (16, 32);
    let tiny = vec![f32::MIN_POSITIVE / 4.0; outputs * inputs];
    let bytes = quantize(&Matrix::from_f32(&tiny, outputs, inputs));
    let weight = QuantizedMatrix::new(&bytes, outputs, inputs);
    let ones = vec![1.0; inputs];
    let result = |weight, input: &[f32]| {
        let product = Product { input, rows: 1, weight, bias: None, activation: Activation::None };
        let ways = IntegerIsa::available()
            .into_iter()
            .map(|integers| compute((Isa::best(), integers), 1, &product, (outputs, 0)));
        let all: Vec<Vec<f32>> = ways.map(|bits| bits.into_iter().map(f32::from_bits).collect()).collect();
        all
    };
    assert!(result(weight, &ones).iter().flatten().all(|value| *value == 0.0), "as good as zero");
    let weights = vec![2.0; outputs * inputs];
    let bytes = quantize(&Matrix::from_f32(&weights, outputs, inputs));
    let weight = QuantizedMatrix::new(&bytes, outputs, inputs);
    assert!(result(weight, &vec![0.0; inputs]).iter().flatten().all(|value| *value == 0.0));
    assert!(result(weight, &vec![1e-42; inputs]).iter().flatten().all(|value| *value == 0.0));
    let large = result(weight, &vec![1e30; inputs]);
    assert!(large.iter().flatten().all(|value| (value / 6.4e31 - 1.0).abs() < 0.01), "{large:?}");
    for wrong in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut input = ones.clone();
        input[5] = wrong;
        assert!(result(weight, &input).iter().flatten().all(|value| !value.is_finite()), "{wrong}");
    }
    assert_eq!(first_not_finite(&bytes), None);
    let mut damaged = bytes.clone();
    damaged[WEIGHT_BYTES..WEIGHT_BYTES + 2].copy_from_slice(&half::f16::NAN.to_le_bytes());
    assert_eq!(first_not_finite(&damaged), Some(0));
}

/// A hostile file holds any byte, also the one that no quantiser writes.
#[test]
fn every_stored_byte_gives_the_same_bits_on_every_instruction_set() {
    let (outputs, inputs) = (16, 256);
    let mut bytes = vec![0; QuantizedMatrix::size(outputs, inputs)];
    for (index, group) in bytes.chunks_exact_mut(GROUP_BYTES).enumerate() {
        group[..WEIGHT_BYTES].iter_mut().enumerate().for_each(|(at, byte)| *byte = (at * 7 + index) as u8);
        group[..8].fill(0);
        group[WEIGHT_BYTES..].as_chunks_mut::<2>().0.iter_mut().for_each(|scale| {
            *scale = half::f16::from_f32(0.01).to_le_bytes();
        });
    }
    let weight = QuantizedMatrix::new(&bytes, outputs, inputs);
    let input: Vec<f32> = (0..inputs).map(|at| if at % 2 == 0 { 1.0 } else { -1.0 }).collect();
    let product = Product { input: &input, rows: 1, weight, bias: None, activation: Activation::None };
    let ways = IntegerIsa::available();
    let all: Vec<_> =
        ways.iter().map(|way| compute((Isa::best(), *way), 1, &product, (outputs, 0))).collect();
    assert!(all.windows(2).all(|pair| pair[0] == pair[1]), "{all:?}");
}

#[test]
fn a_part_of_the_outputs_is_computed_as_in_the_whole() {
    let (rows, outputs, inputs) = (5, 50, 96);
    let (input, weights) = (numbers(rows * inputs, 7), numbers(outputs * inputs, 8));
    let bytes = quantize(&Matrix::from_f32(&weights, outputs, inputs));
    let weight = QuantizedMatrix::new(&bytes, outputs, inputs);
    let product = Product { input: &input, rows, weight, bias: None, activation: Activation::None };
    let way = (Isa::best(), IntegerIsa::within(Isa::best()));
    let whole = compute(way, 2, &product, (outputs, 0));
    for part in [0..16, 16..48, 32..50, 0..50, 48..48] {
        let weight = weight.rows(part.clone());
        assert_eq!((weight.outputs(), weight.inputs()), (part.len(), inputs));
        let found = compute(way, 2, &Product { weight, ..product }, (part.len(), 0));
        for row in 0..rows {
            let expected = &whole[row * outputs..][part.clone()];
            assert_eq!(&found[row * part.len()..][..part.len()], expected, "{part:?} of row {row}");
        }
    }
}

/// A part that is no whole panels is a mistake of an engine, and not of a file.
#[test]
fn parts_that_are_no_whole_panels_are_refused() {
    let weights = numbers(50 * 32, 9);
    let bytes = quantize(&Matrix::from_f32(&weights, 50, 32));
    for part in [1..16, 0..17, 16..49, 0..51] {
        let refused = std::panic::catch_unwind(|| QuantizedMatrix::new(&bytes, 50, 32).rows(part.clone()));
        assert!(refused.is_err(), "{part:?}");
    }
    let short = std::panic::catch_unwind(|| QuantizedMatrix::new(&bytes[1..], 50, 32));
    assert!(short.is_err(), "bytes that are missing");
}

/// The product with a row that is zero but for one input is that input's weights, and the embedding of an
/// output has them too.
#[test]
fn an_embedding_has_the_weights_that_a_product_has() {
    let (outputs, inputs) = (20, 64);
    let weights = numbers(outputs * inputs, 10);
    let bytes = quantize(&Matrix::from_f32(&weights, outputs, inputs));
    let weight = QuantizedMatrix::new(&bytes, outputs, inputs);
    let mut row = vec![0.0; inputs];
    for at in [0, 3, 31, 32, 63] {
        let mut input = vec![0.0; inputs];
        input[at] = 127.0;
        let product = Product { input: &input, rows: 1, weight, bias: None, activation: Activation::None };
        let found = compute((Isa::best(), IntegerIsa::within(Isa::best())), 1, &product, (outputs, 0));
        for (output, found) in found.into_iter().enumerate() {
            weight.copy_row(output, &mut row);
            let (found, expected) = (f32::from_bits(found), row[at] * 127.0);
            assert!((found - expected).abs() <= expected.abs() * 1e-6, "{found} and {expected}");
        }
    }
}

/// Activations are the nearest multiples of their group's scale, ties to even.
#[test]
fn activations_are_rounded_to_the_nearest_step_of_their_group() {
    let inputs = 70;
    let mut input = numbers(inputs, 11);
    // A group whose steps are whole numbers has ties.
    input[32..64].iter_mut().enumerate().for_each(|(at, value)| *value = at as f32 - 15.5);
    input[32] = 127.0;
    let pool = ComputePool::new(1);
    for isa in Isa::available() {
        let mut rows = QuantizedRows::new();
        rows.fill(isa, &pool, &input, 1, inputs);
        let block = rows.part(0..1);
        assert_eq!((rows.rows(), block.groups), (1, 3));
        for (group, given) in input.chunks(GROUP).enumerate() {
            let most = given.iter().fold(0.0_f32, |most, value| most.max(value.abs()));
            assert_eq!(block.scales[group], most / 127.0);
            let values = &block.values[group * GROUP..][..GROUP];
            for (found, given) in values.iter().zip(given) {
                let expected = (given * (127.0 / most)).round_ties_even();
                assert_eq!(f32::from(*found), expected, "{given} of {most}");
            }
            assert!(values[given.len()..].iter().all(|value| *value == 0), "beyond the last input");
            let sum: i32 = values.iter().map(|value| i32::from(*value)).sum();
            assert_eq!(block.starts[group], -128 * sum);
        }
    }
}

/// Every way that a machine has is used, the fastest first, and none that is wider than asked for.
#[test]
fn the_way_to_multiply_is_no_wider_than_the_instruction_set() {
    let all = IntegerIsa::available();
    assert_eq!(all.last().map(|way| way.name()), Some("portable"));
    for isa in Isa::available() {
        let way = IntegerIsa::within(isa);
        assert!(all.contains(&way));
        match isa.name() {
            "portable" => assert_eq!(way.name(), "portable"),
            "AVX2" => assert!(way.name() != "AVX-512 VNNI" && way.name() != "portable", "{}", way.name()),
            _ => assert_eq!(way, all[0]),
        }
    }
}

/// More rows than one thread quantises alone.
#[test]
fn many_rows_are_quantised_alike_on_any_number_of_threads() {
    let (rows, inputs) = (300, 257);
    let input = numbers(rows * inputs, 12);
    let quantized = |threads: usize| {
        let (pool, mut found) = (ComputePool::new(threads), QuantizedRows::new());
        pool.enter(|| found.fill(Isa::best(), &pool, &input, rows, inputs));
        let block = found.part(0..rows);
        (block.values.to_vec(), block.scales.to_vec(), block.starts.to_vec())
    };
    let alone = quantized(1);
    assert!(alone == quantized(3) && alone == quantized(8));
}

/// The products of two panels are those of each alone, for every number of rows.
#[test]
fn two_panels_at_once_are_computed_as_each_alone() {
    let (outputs, inputs) = (32, 160);
    let weights = numbers(outputs * inputs, 13);
    let bytes = quantize(&Matrix::from_f32(&weights, outputs, inputs));
    let weight = QuantizedMatrix::new(&bytes, outputs, inputs);
    for rows in 1..=2 * ROWS + 1 {
        let input = numbers(rows * inputs, 14);
        let product = Product { input: &input, rows, weight, bias: None, activation: Activation::Gelu };
        for integers in IntegerIsa::available() {
            let whole = compute((Isa::best(), integers), 1, &product, (outputs, 0));
            for part in [0..16, 16..32] {
                let alone = Product { weight: weight.rows(part.clone()), ..product };
                let found = compute((Isa::best(), integers), 1, &alone, (16, 0));
                let rows = whole.chunks_exact(outputs).zip(found.chunks_exact(16));
                for (whole, found) in rows {
                    assert_eq!(
                        &whole[part.clone()],
                        found,
                        "{} and {rows:?} rows",
                        integers.name(),
                        rows = product.rows
                    );
                }
            }
        }
    }
}

/// Queries, keys and values side by side in one buffer, and a matrix with a buffer of its own.
#[test]
fn several_matrices_at_once_give_the_bits_of_each_alone() {
    let (rows, inputs) = (9, 96);
    let input = numbers(rows * inputs, 15);
    let bytes: Vec<Vec<u8>> = [40, 16, 24, 200]
        .iter()
        .map(|outputs| quantize(&Matrix::from_f32(&numbers(outputs * inputs, 16), *outputs, inputs)))
        .collect();
    let matrix = |index: usize, outputs: usize| QuantizedMatrix::new(&bytes[index], outputs, inputs);
    let bias = numbers(16, 17);
    let (mut shared, mut own) = (vec![7.0; rows * 80], vec![7.0; rows * 200]);
    for threads in [1, 3] {
        let pool = ComputePool::new(threads);
        let (values, others) = (Parts::new(&mut shared), Parts::new(&mut own));
        let part = |index: usize, outputs: usize, offset: usize, bias| ProductPart {
            weight: matrix(index, outputs),
            bias,
            values: if index == 3 { others } else { values },
            stride: if index == 3 { 200 } else { 80 },
            offset,
        };
        let parts = [
            part(0, 40, 0, None),
            part(1, 16, 40, Some(&bias[..])),
            part(2, 24, 56, None),
            part(3, 200, 0, None),
        ];
        pool.enter(|| matmul_all(Isa::best(), &pool, (&input, rows), &parts));
        let refused = |parts: &[ProductPart<'_>]| {
            let attempt = || matmul_all(Isa::best(), &pool, (&input, rows), parts);
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(attempt)).is_err()
        };
        assert!(refused(&[parts[0], parts[0]]), "the same columns");
        assert!(refused(&[parts[0], part(1, 16, 39, None)]), "columns that overlap");
        assert!(refused(&[part(2, 24, 57, None)]), "columns beyond the row");
        assert!(refused(&[ProductPart { stride: 100, ..parts[3] }, parts[3]]), "rows that overlap");
        for (index, outputs, offset, bias) in
            [(0, 40, 0, None), (1, 16, 40, Some(&bias[..])), (2, 24, 56, None), (3, 200, 0, None)]
        {
            let weight = matrix(index, outputs);
            let alone = Product { input: &input, rows, weight, bias, activation: Activation::None };
            let way = (Isa::best(), IntegerIsa::within(Isa::best()));
            let expected = compute(way, 1, &alone, (outputs, 0));
            let (found, stride) = if index == 3 { (&own, 200) } else { (&shared, 80) };
            for row in 0..rows {
                let found = found[row * stride + offset..][..outputs].iter().map(|value| value.to_bits());
                assert!(found.eq(expected[row * outputs..][..outputs].iter().copied()), "{index}, row {row}");
            }
        }
    }
}
