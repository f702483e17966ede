use crate::abi::embedding_params;
use crate::gpu::{Gpu, in_every_schedule, row_threads};
use crate::numbers::random_bf16;

#[test]
fn rows_are_copied() {
    let gpu = Gpu::get();
    for (tokens, hidden, vocab) in [(1, 8, 3), (5, 576, 7), (3, 72, 251), (4, 37, 5), (2, 4104, 3)] {
        let table = random_bf16(vocab * hidden, 1);
        let ids: Vec<u32> = (0..tokens).map(|t| ((t * 5 + vocab - 1) % vocab) as u32).collect();
        let (table_d, ids_d) = (gpu.upload(&table), gpu.upload(&ids));
        let got = in_every_schedule(|| {
            let y = gpu.fresh::<u16>(tokens * hidden);
            let params = embedding_params { y: y.ptr(), table: table_d.ptr(), ids: ids_d.ptr(), hidden: hidden as u32 };
            gpu.launch("embedding", (tokens as u32, 1, 1), row_threads(hidden), 0, &params);
            gpu.download(&y)
        });
        let want: Vec<u16> = ids.iter().flat_map(|&id| table[id as usize * hidden..][..hidden].to_vec()).collect();
        assert!(got == want, "{tokens} x {hidden}");
    }
}
