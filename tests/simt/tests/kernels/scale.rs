use crate::abi::{ROW_THREADS, scale_params};
use crate::gpu::{Gpu, in_every_schedule};
use crate::numbers::{BF16, F32, assert_within, random_bf16, wide};

#[test]
fn scaling_and_adding_equal_f64_in_place_too() {
    let gpu = Gpu::get();
    for n in [1usize, 7, 8, 2048, 5003] {
        let (x, before) = (random_bf16(n, 1), random_bf16(n, 2));
        let x_d = gpu.upload(&x);
        let grid = (n.div_ceil(8 * ROW_THREADS as usize) as u32, 1, 1);
        let (added, scaled) = in_every_schedule(|| {
            let (y, z) = (gpu.upload(&before), gpu.upload(&x));
            let add = scale_params { y: y.ptr(), x: x_d.ptr(), n: n as u64, factor: 0.3, add: 1 };
            gpu.launch("scale", grid, ROW_THREADS, 0, &add);
            let in_place = scale_params { y: z.ptr(), x: z.ptr(), n: n as u64, factor: 0.3, add: 0 };
            gpu.launch("scale", grid, ROW_THREADS, 0, &in_place);
            (gpu.download(&y), gpu.download(&z))
        });
        let (x, before) = (wide(&x), wide(&before));
        let scaled_exactly: Vec<f64> = x.iter().map(|x| x * f64::from(0.3f32)).collect();
        let added_exactly: Vec<f64> = scaled_exactly.iter().zip(&before).map(|(x, y)| x + y).collect();
        // One rounding to f32, one to bf16.
        assert_within("scaled", &wide(&scaled), &scaled_exactly, |i| scaled_exactly[i].abs() * (BF16 + F32) * 1.01);
        assert_within("added", &wide(&added), &added_exactly, |i| added_exactly[i].abs() * (BF16 + F32) * 1.01);
    }
}
