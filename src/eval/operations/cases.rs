//! Which operations are measured, in which shapes.

use super::{Call, Room};
use crate::device::{DType, Tensor};
use crate::error::Result;
use crate::eval::training_step::spread_ids;
use crate::ops::adamw::{AdamW, Parameter, adamw};
use crate::ops::attention::{PagedBatch, attention, attention_backward, kv_store, paged_attention};
use crate::ops::cross_entropy::linear_cross_entropy;
use crate::ops::divergence::divergence;
use crate::ops::embedding::{embedding, embedding_backward};
use crate::ops::grad_norm::grad_norm;
use crate::ops::log_probs::log_probs;
use crate::ops::matmul::{Store, matmul_nn, matmul_nt, matmul_tn};
use crate::ops::rmsnorm::{rmsnorm, rmsnorm_backward};
use crate::ops::rope::{rope, rope_backward};
use crate::ops::swiglu::{swiglu, swiglu_backward};

/// Tokens in a page of the cache.
const PAGE: usize = 16;

/// An operation in one shape, and how to make buffers for it.
pub(super) struct Case {
    pub operation: &'static str,
    pub shape: String,
    pub make: Box<Make>,
}

type Make = dyn Fn(&Room) -> Result<Call>;

fn case(operation: &'static str, shape: String, make: impl Fn(&Room) -> Result<Call> + 'static) -> Case {
    Case { operation, shape, make: Box::new(make) }
}

/// Everything, products first.
pub(super) fn all(room: &Room) -> Vec<Case> {
    [products(room), rows(room), attentions(room), heads(room), optimizer(room)].into_iter().flatten().collect()
}

/// Sequences of a decoding step that are measured beside the chosen number.
const DECODED: [usize; 3] = [1, 8, 32];

/// Products of every projection in a pass, of all in steps of decoding, and the two of the backward pass.
fn products(room: &Room) -> Vec<Case> {
    let (config, tokens, batch) = (room.config, room.options.tokens, room.options.batch);
    let (hidden, wide, heads) = (config.hidden_size, config.intermediate_size, config.heads);
    let (q, kv) = (heads.n_heads * heads.head_dim, heads.n_kv_heads * heads.head_dim);
    let nt = |operation, m: usize, n: usize, k: usize| {
        case(operation, format!("{m}x{n}x{k}"), move |room| {
            let (x, w, mut y) = (room.activation(m, k)?, room.tensor(&[n, k], DType::BF16)?, room.activation(m, n)?);
            Ok(Box::new(move |dev| matmul_nt(dev, &mut y, &x, &w, None, Store::Replace)))
        })
    };
    let nn = case("matmul nn", format!("{tokens}x{hidden}x{wide}"), move |room| {
        let (dy, w) = (room.activation(tokens, wide)?, room.tensor(&[wide, hidden], DType::BF16)?);
        let mut dx = room.activation(tokens, hidden)?;
        Ok(Box::new(move |dev| matmul_nn(dev, &mut dx, &dy, &w, Store::Replace)))
    });
    let tn = case("matmul tn", format!("{wide}x{hidden}x{tokens}"), move |room| {
        let (dy, x) = (room.activation(tokens, wide)?, room.activation(tokens, hidden)?);
        let mut dw = room.tensor(&[wide, hidden], DType::F32)?;
        Ok(Box::new(move |dev| matmul_tn(dev, &mut dw, &dy, &x, Store::Replace)))
    });
    let projections = [(q, hidden), (kv, hidden), (wide, hidden), (hidden, wide)];
    let of_pass = projections.iter().map(|&(n, k)| (tokens, n, k));
    let of_steps =
        DECODED.into_iter().filter(|&few| few != batch).chain([batch]).flat_map(|rows| {
            projections.into_iter().chain([(config.vocab_size, hidden)]).map(move |(n, k)| (rows, n, k))
        });
    of_pass.chain(of_steps).map(|(m, n, k)| nt("matmul nt", m, n, k)).chain([nn, tn]).collect()
}

/// Operations that read and write each row once.
fn rows(room: &Room) -> Vec<Case> {
    let (config, tokens) = (room.config, room.options.tokens);
    let (hidden, wide, vocab, heads) = (config.hidden_size, config.intermediate_size, config.vocab_size, config.heads);
    let (q, eps) = (heads.n_heads * heads.head_dim, config.rms_norm_eps);
    let narrow = format!("{tokens}x{hidden}");
    let rotation = move |room: &Room| -> Result<(Tensor, Tensor, Tensor)> {
        let positions = Tensor::from_u32(&(0..tokens as u32).collect::<Vec<u32>>());
        let inv_freq = room.config.inv_freq();
        let inv_freq = Tensor::from_f32(&inv_freq, &[inv_freq.len()]);
        Ok((room.activation(tokens, q)?, positions, room.dev.upload(&inv_freq, DType::F32)?))
    };
    vec![
        case("embedding", narrow.clone(), move |room| {
            let (table, ids) = (room.tensor(&[vocab, hidden], DType::BF16)?, ids(tokens, vocab));
            let mut y = room.activation(tokens, hidden)?;
            Ok(Box::new(move |dev| embedding(dev, &mut y, &table, &ids)))
        }),
        case("embedding_backward", narrow.clone(), move |room| {
            let (dy, ids) = (room.activation(tokens, hidden)?, ids(tokens, vocab));
            let mut d_table = room.tensor(&[vocab, hidden], DType::F32)?;
            Ok(Box::new(move |dev| embedding_backward(dev, &mut d_table, &dy, &ids)))
        }),
        case("rmsnorm", narrow.clone(), move |room| {
            let (x, w) = (room.activation(tokens, hidden)?, room.tensor(&[hidden], DType::BF16)?);
            let mut y = room.activation(tokens, hidden)?;
            Ok(Box::new(move |dev| rmsnorm(dev, &mut y, &x, &w, eps)))
        }),
        case("rmsnorm_backward", narrow, move |room| {
            let (x, dy) = (room.activation(tokens, hidden)?, room.activation(tokens, hidden)?);
            let (mut dx, w) = (room.activation(tokens, hidden)?, room.tensor(&[hidden], DType::BF16)?);
            let mut dw = room.tensor(&[hidden], DType::F32)?;
            Ok(Box::new(move |dev| rmsnorm_backward(dev, &mut dx, Some(&mut dw), &dy, &x, &w, eps, Store::Replace)))
        }),
        case("rope", format!("{tokens}x{q}"), move |room| {
            let (mut x, positions, inv_freq) = rotation(room)?;
            Ok(Box::new(move |dev| rope(dev, &mut x, &positions, &inv_freq)))
        }),
        case("rope_backward", format!("{tokens}x{q}"), move |room| {
            let (mut dx, positions, inv_freq) = rotation(room)?;
            Ok(Box::new(move |dev| rope_backward(dev, &mut dx, &positions, &inv_freq)))
        }),
        case("swiglu", format!("{tokens}x{wide}"), move |room| {
            let (gate, up) = (room.activation(tokens, wide)?, room.activation(tokens, wide)?);
            let mut y = room.activation(tokens, wide)?;
            Ok(Box::new(move |dev| swiglu(dev, &mut y, &gate, &up)))
        }),
        case("swiglu_backward", format!("{tokens}x{wide}"), move |room| {
            let [gate, up, dy] = [(); 3].map(|()| room.activation(tokens, wide));
            let [d_gate, d_up] = [(); 2].map(|()| room.activation(tokens, wide));
            let (gate, up, dy, mut d_gate, mut d_up) = (gate?, up?, dy?, d_gate?, d_up?);
            Ok(Box::new(move |dev| swiglu_backward(dev, &mut d_gate, &mut d_up, &dy, &gate, &up)))
        }),
    ]
}

/// Attention of one sequence, forward and backward, and of a step of decoding against the paged cache.
fn attentions(room: &Room) -> Vec<Case> {
    let (heads, tokens, batch, context) =
        (room.config.heads, room.options.tokens, room.options.batch, room.options.context);
    let (q_width, kv_width) = (heads.n_heads * heads.head_dim, heads.n_kv_heads * heads.head_dim);
    let shape = format!("{tokens} tokens, {} of {} heads of {}", heads.n_kv_heads, heads.n_heads, heads.head_dim);
    let pages = context.div_ceil(PAGE);
    let cache = move |room: &Room| room.tensor(&[batch * pages * PAGE, kv_width], room.dev.kv_cache());
    let cases = vec![
        case("attention", shape.clone(), move |room| {
            let (q, k) = (room.activation(tokens, q_width)?, room.activation(tokens, kv_width)?);
            let (v, mut y) = (room.activation(tokens, kv_width)?, room.activation(tokens, q_width)?);
            let mut lse = room.tensor(&[tokens, heads.n_heads], DType::F32)?;
            let cu_seqlens = Tensor::from_u32(&[0, tokens as u32]);
            Ok(Box::new(move |dev| attention(dev, &mut y, &mut lse, &q, &k, &v, &cu_seqlens, heads)))
        }),
        case("attention_backward", shape, move |room| {
            let (q, k) = (room.activation(tokens, q_width)?, room.activation(tokens, kv_width)?);
            let (v, mut y) = (room.activation(tokens, kv_width)?, room.activation(tokens, q_width)?);
            let mut lse = room.tensor(&[tokens, heads.n_heads], DType::F32)?;
            let cu_seqlens = Tensor::from_u32(&[0, tokens as u32]);
            attention(room.dev, &mut y, &mut lse, &q, &k, &v, &cu_seqlens, heads)?;
            let (dy, mut dq) = (room.activation(tokens, q_width)?, room.activation(tokens, q_width)?);
            let (mut dk, mut dv) = (room.activation(tokens, kv_width)?, room.activation(tokens, kv_width)?);
            Ok(Box::new(move |dev| {
                attention_backward(dev, &mut dq, &mut dk, &mut dv, &dy, &y, &q, &k, &v, &lse, &cu_seqlens, heads)
            }))
        }),
        case("kv_store", format!("{batch}x{kv_width}"), move |room| {
            let (k, v) = (room.activation(batch, kv_width)?, room.activation(batch, kv_width)?);
            let (mut k_pages, mut v_pages) = (cache(room)?, cache(room)?);
            let slots: Vec<u32> = (0..batch).map(|i| (i * pages * PAGE + context - 1) as u32).collect();
            let slots = Tensor::from_u32(&slots);
            Ok(Box::new(move |dev| kv_store(dev, &mut k_pages, &mut v_pages, &k, &v, &slots, heads)))
        }),
    ];
    let (short, long) = (context.div_ceil(8), 8 * context);
    let mut steps = vec![(batch, short), (batch, context), (1, short), (1, context), (1, long)];
    steps.sort();
    steps.dedup();
    cases.into_iter().chain(steps.into_iter().map(|(batch, context)| paged(batch, context))).collect()
}

/// A step of decoding against the paged cache.
fn paged(batch: usize, context: usize) -> Case {
    case("paged_attention", format!("{batch} sequences, context {context}"), move |room| {
        let heads = room.config.heads;
        let (q_width, kv_width) = (heads.n_heads * heads.head_dim, heads.n_kv_heads * heads.head_dim);
        let pages = context.div_ceil(PAGE);
        let cache = || room.tensor(&[batch * pages * PAGE, kv_width], room.dev.kv_cache());
        let (q, mut y, k_pages, v_pages) =
            (room.activation(batch, q_width)?, room.activation(batch, q_width)?, cache()?, cache()?);
        let cu_seqlens = Tensor::from_u32(&(0..=batch as u32).collect::<Vec<u32>>());
        let context_lens = Tensor::from_u32(&vec![context as u32; batch]);
        let mut page_table = Tensor::zeros(&[batch, pages], DType::U32);
        // Neighbours in a sequence lie apart, as in a cache in use.
        let page = |i: usize| (i % pages * batch + i / pages) as u32;
        page_table.u32_mut().iter_mut().enumerate().for_each(|(i, entry)| *entry = page(i));
        Ok(Box::new(move |dev| {
            let (cu_seqlens, context_lens, page_table) = (&cu_seqlens, &context_lens, &page_table);
            let paged = PagedBatch { cu_seqlens, context_lens, page_table, page_size: PAGE };
            paged_attention(dev, &mut y, &q, &k_pages, &v_pages, &paged, heads)
        }))
    })
}

/// Operations on logits, which are never held for all tokens.
fn heads(room: &Room) -> Vec<Case> {
    let (hidden, vocab, tokens) = (room.config.hidden_size, room.config.vocab_size, room.options.tokens);
    let shape = format!("{tokens}x{vocab}x{hidden}");
    vec![
        case("linear_cross_entropy", shape.clone(), move |room| {
            let (x, head) = (room.activation(tokens, hidden)?, room.tensor(&[vocab, hidden], DType::BF16)?);
            let (mut losses, mut dx) = (room.tensor(&[tokens], DType::F32)?, room.activation(tokens, hidden)?);
            let targets = ids(tokens, vocab);
            Ok(Box::new(move |dev| {
                linear_cross_entropy(dev, &mut losses, &mut dx, None, &x, &head, &targets, 1.0 / tokens as f32)
            }))
        }),
        case("log_probs", shape.clone(), move |room| {
            let (x, head) = (room.activation(tokens, hidden)?, room.tensor(&[vocab, hidden], DType::BF16)?);
            let (mut out, targets) = (room.tensor(&[tokens], DType::F32)?, ids(tokens, vocab));
            Ok(Box::new(move |dev| log_probs(dev, &mut out, &x, &head, &targets)))
        }),
        case("divergence", shape, move |room| {
            let (p, q) = (room.activation(tokens, hidden)?, room.activation(tokens, hidden)?);
            let head = room.tensor(&[vocab, hidden], DType::BF16)?;
            let (mut kl, mut agree) = (room.tensor(&[tokens], DType::F32)?, room.tensor(&[tokens], DType::F32)?);
            Ok(Box::new(move |dev| divergence(dev, &mut kl, &mut agree, &p, &head, &q, &head)))
        }),
    ]
}

/// AdamW and the gradient norm over one of the largest weights of a block.
fn optimizer(room: &Room) -> Vec<Case> {
    let shape = [room.config.intermediate_size, room.config.hidden_size];
    let name = format!("{}x{}", shape[0], shape[1]);
    vec![
        case("adamw", name.clone(), move |room| {
            let (mut p, g) = (room.tensor(&shape, room.dev.activation())?, room.tensor(&shape, DType::F32)?);
            let mut master = if room.dev.is_cpu() { None } else { Some(room.tensor(&shape, DType::F32)?) };
            let [mut m, mut v] = [room.dev.zeros(&shape, DType::F32)?, room.dev.zeros(&shape, DType::F32)?];
            let mut step = 0;
            Ok(Box::new(move |dev| {
                step += 1;
                let (beta1, beta2, eps) = (0.9, 0.999, 1e-8);
                let settings = AdamW { lr: 1e-4, beta1, beta2, eps, weight_decay: 0.01, step, grad_scale: 1.0 };
                let (master, p, m, v) = (master.as_mut(), &mut p, &mut m, &mut v);
                adamw(dev, &mut [Parameter { p, master, m, v, g: &g, decayed: true }], settings)
            }))
        }),
        case("grad_norm", name, move |room| {
            let g = room.tensor(&shape, DType::F32)?;
            Ok(Box::new(move |dev| grad_norm(dev, &[&g]).map(drop)))
        }),
    ]
}

/// Ids that lie apart.
fn ids(n: usize, vocab: usize) -> Tensor {
    Tensor::from_u32(&spread_ids(n, vocab))
}
