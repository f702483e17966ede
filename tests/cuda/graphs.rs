//! Steps that are repeated as CUDA graphs.

use crate::generate::{tokens, with_models};
use crate::{calls, card, support, tiny};
use ratoon::device::{DType, Device, Repeated, Tensor};
use ratoon::generate::{Completion, EngineOptions, Request, Sampling, generate};
use ratoon::model::Llama;
use ratoon::ops::gather::gather_rows;
use ratoon::ops::scale::scale;

/// A card that launches kernel by kernel: one that measures each.
fn card_without_graphs() -> Device {
    let dev = card();
    dev.profile();
    dev
}

/// Requests of many lengths: some end while others go on.
fn requests() -> Vec<Request> {
    let of = |id: u64| {
        let prompt = (0..3 + 5 * id as u32).map(|i| (i * 13 + id as u32) % 200).collect();
        let temperature = if id.is_multiple_of(2) { 0.0 } else { 0.8 };
        let sampling = Sampling { temperature, ..Sampling::GREEDY };
        Request { sampling, ..Request::new(id, prompt, 4 + 3 * id as usize) }
    };
    (0..6).map(of).collect()
}

#[test]
fn graphs_draw_the_tokens_that_kernels_launched_one_by_one_draw() {
    let adapter = support::root().join("tests/data/lora");
    for adapter in [None, Some(adapter.as_path())] {
        let load = |dev: &Device| {
            let model = Llama::load(&tiny("gqa")).unwrap();
            let mut model = adapter.map_or(Ok(model.clone()), |adapter| model.with_adapter(adapter)).unwrap();
            model.prepare(dev).unwrap();
            model
        };
        let (dev, plain) = (card(), card_without_graphs());
        let (model, plain_model) = (load(&dev), load(&plain));
        for (max_batch_size, page_size) in [(1, 16), (4, 4), (6, 16)] {
            let options = EngineOptions { max_batch_size, page_size, ..EngineOptions::default() };
            let before = calls(c"cuGraphLaunch");
            let got = tokens(&dev, &model, &requests(), &options);
            assert!(before.is_none() || calls(c"cuGraphLaunch") > before, "graphs are used");
            let before = calls(c"cuGraphLaunch");
            assert_eq!(got, tokens(&plain, &plain_model, &requests(), &options), "batches of {max_batch_size}");
            assert_eq!(before, calls(c"cuGraphLaunch"), "and here they are not");
        }
    }
}

/// A context that grows past a split of attention changes its grid, and where it keeps what the splits found.
#[test]
fn graphs_follow_a_context_into_the_next_split() {
    let (dev, plain) = (card(), card_without_graphs());
    let requests = [Request::new(0, (0..250).map(|i| i * 7 % 200).collect(), 12), Request::new(1, vec![5; 40], 12)];
    let of = |dev: &Device| {
        let model = Llama::load_packed(dev, &tiny("gqa")).unwrap();
        tokens(dev, &model, &requests, &EngineOptions::default())
    };
    assert_eq!(of(&dev), of(&plain));
}

#[test]
fn what_a_step_takes_from_elsewhere_than_memory_makes_another_graph() {
    let dev = card();
    let mut repeated = Repeated::default();
    let upload = |values: &[f32]| dev.upload(&Tensor::from_f32(values, &[1, values.len()]), DType::BF16).unwrap();
    let value = |x: &Tensor| x.host().unwrap().to_f32().f32()[0];
    let (mut x, mut other) = (upload(&[1.0, 1.0]), upload(&[1.0, 1.0]));
    // Noted, captured, replayed; then another factor, and the first again.
    for (factor, want) in [(2.0, 2.0), (2.0, 4.0), (2.0, 8.0), (0.5, 4.0), (0.5, 2.0), (2.0, 4.0), (0.5, 2.0)] {
        dev.repeat(&mut repeated, &[], || scale(&dev, &mut x, factor)).unwrap();
        assert_eq!(value(&x), want);
    }
    dev.repeat(&mut repeated, &[], || scale(&dev, &mut other, 2.0)).unwrap();
    assert_eq!([value(&x), value(&other)], [2.0, 2.0], "another tensor");
    // Indices are read from memory: one graph, other rows.
    let table = dev.upload(&Tensor::from_f32(&[1.0, 2.0, 4.0, 8.0], &[4, 1]), DType::BF16).unwrap();
    let (mut y, mut rows) = (upload(&[0.0]), Tensor::from_u32(&[0]));
    let captured = calls(c"cuGraphInstantiateWithFlags");
    for row in [1, 3, 0, 2, 3] {
        rows.u32_mut()[0] = row;
        dev.repeat(&mut repeated, &[&rows], || gather_rows(&dev, &mut y, &table, &rows)).unwrap();
        assert_eq!(value(&y), 2f32.powi(row as i32));
    }
    assert_eq!(calls(c"cuGraphInstantiateWithFlags"), captured.map(|n| n + 1));
}

#[test]
fn a_step_that_moves_data_or_leaves_memory_behind_is_refused() {
    let dev = card();
    let mut repeated = Repeated::default();
    let (mut y, table) = (dev.zeros(&[1, 8], DType::BF16).unwrap(), dev.zeros(&[4, 8], DType::BF16).unwrap());
    let rows = Tensor::from_u32(&[2]);
    let unsaid = dev.repeat(&mut repeated, &[], || gather_rows(&dev, &mut y, &table, &rows));
    assert!(unsaid.unwrap_err().to_string().starts_with("upload: step"));
    let read = dev.repeat(&mut repeated, &[], || table.host().map(drop));
    assert!(read.unwrap_err().to_string().starts_with("download: step"));
    let mut kept = None;
    let left = dev.repeat(&mut repeated, &[], || dev.zeros(&[4], DType::F32).map(|zeros| kept = Some(zeros)));
    assert!(left.unwrap_err().to_string().contains("1 buffers that outlive it"));
    // What was refused leaves nothing behind.
    gather_rows(&dev, &mut y, &table, &rows).unwrap();
    assert_eq!(y.host().unwrap().to_f32().f32(), [0.0; 8]);
}

#[test]
fn a_decoding_step_allocates_nothing_and_is_a_graph_and_the_draw() {
    let dev = card();
    let model = Llama::load_packed(&dev, &tiny("gqa")).unwrap();
    // Of each request's end.
    let count = || [c"cuMemAlloc_v2", c"cuMemFree_v2", c"cuLaunchKernel", c"cuGraphLaunch"].map(calls);
    let requests = [10, 40].map(|tokens| Request::new(tokens, vec![7; 5], tokens as usize));
    let mut counted = Vec::new();
    let mut sink = |_: usize, _: Completion| {
        counted.push(count());
        Ok(())
    };
    with_models(&model, |models| generate(&dev, models, &requests, &EngineOptions::default(), &mut sink)).unwrap();
    let [first, second] = counted[..] else { panic!("two requests") };
    if let ([Some(allocated), Some(freed), Some(launched), Some(graphs)], [Some(a), Some(f), Some(l), Some(g)]) =
        (first, second)
    {
        assert_eq!([a - allocated, f - freed], [0, 0]);
        // The batch has another size now: its first step is launched kernel by kernel and its second captured, at most 15 launches for
        // each of 4 blocks, the embedding and the last norm. Rows of the output head, logits and draw are not in the graph.
        assert_eq!(g - graphs, 29);
        assert!((l - launched - 3 * 30) / 2 <= 4 * 15 + 2, "{} launches", l - launched);
    }
}
