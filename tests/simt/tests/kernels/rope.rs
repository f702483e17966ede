use crate::abi::rope_params;
use crate::gpu::{Gpu, in_every_schedule, row_threads};
use crate::numbers::{BF16, F32, assert_within, random_bf16, wide};

#[test]
fn rotations_equal_f64_at_every_position_and_the_reverse_leads_back() {
    let gpu = Gpu::get();
    let positions = [0u32, 1, 2, 999, 8191, 65_537, 131_072];
    for (heads, head_dim) in [(1, 12), (3, 64), (2, 80), (9, 64)] {
        let (tokens, width, half) = (positions.len(), heads * head_dim, head_dim / 2);
        let inv_freq: Vec<f32> = (0..half).map(|i| 500_000f32.powf(-2.0 * i as f32 / head_dim as f32)).collect();
        let x = random_bf16(tokens * width, 1);
        let (positions_d, inv_freq_d) = (gpu.upload(&positions), gpu.upload(&inv_freq));
        let turn = |x: &[u16], direction: f32| {
            in_every_schedule(|| {
                let x = gpu.upload(x);
                let params = rope_params {
                    x: x.ptr(),
                    positions: positions_d.ptr(),
                    inv_freq: inv_freq_d.ptr(),
                    width: width as u32,
                    half: half as u32,
                    direction,
                };
                gpu.launch("rope", (tokens as u32, 1, 1), row_threads(width / 2), 0, &params);
                gpu.download(&x)
            })
        };
        let got = turn(&x, 1.0);
        let before = wide(&x);
        let mut want = before.clone();
        for (head, want) in want.chunks_mut(head_dim).enumerate() {
            for i in 0..half {
                // The angle is an f32 product by contract.
                let (sin, cos) = f64::from(positions[head / heads] as f32 * inv_freq[i]).sin_cos();
                let (a, b) = (want[i], want[i + half]);
                (want[i], want[i + half]) = (a * cos - b * sin, b * cos + a * sin);
            }
        }
        // Sine, cosine, two products and a sum of numbers below 1; then bf16.
        assert_within("rope", &wide(&got), &want, |i| want[i].abs() * BF16 * 1.01 + 8.0 * F32);
        // Turned back: the rounding of both directions, of lengths below sqrt(2).
        assert_within("back", &wide(&turn(&got, -1.0)), &before, |_| 4.0 * BF16);
    }
}
