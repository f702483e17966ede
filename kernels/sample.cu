// The next token of each row of logits: greedy, or drawn after temperature, top-k and top-p, as src/ops/sample.rs defines it.
// One block a row.
//
// Ids are ordered by logit, equal ones by id; top-k and top-p keep a beginning of that order. The last id of it is searched: down the
// digits of the logits' order-preserving integers, 8 bits at a time, with a histogram of weights (or of counts, for top-k), then
// by id among equal logits. Nothing is sorted, and any k and p cost the same. The draw is the first kept id, by number, whose
// running sum of weights exceeds a random share of the sum that is kept. Weights are whole numbers, exp(logit - max) * 2^40
// rounded down, so that sums by atomics have one value in any order.
//
// Floor: rows * vocab * 4 bytes; up to 16 passes read the row, all but the first from L2.
#include "philox.cuh"

constexpr float LOG2E = 1.44269504f;
constexpr float ONE = 1099511627776.0f;  // 2^40, the weight of the largest logit

struct SampleShared {
    unsigned long long weight[256];
    unsigned long long per_warp[32];
    unsigned long long rest;
    uint32_t digit, id;
};

// Whole numbers in the order of the logits.
__device__ __forceinline__ uint32_t order_key(float logit) {
    const uint32_t bits = __float_as_uint(logit + 0.0f);  // -0 is 0
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// An id, by its logit's key; before it in the order lie the larger keys, and equal keys of lower ids.
struct Place {
    uint32_t key, id;

    // Whether an id stands up to here.
    __device__ __forceinline__ bool holds(uint32_t i, float logit) const {
        const uint32_t other = order_key(logit);
        return other > key || (other == key && i <= id);
    }
};

struct Row {
    const float* logits;
    uint32_t vocab;
    float max, per_temperature;

    __device__ __forceinline__ uint64_t weight(float logit) const {
        return static_cast<uint64_t>(exp2_approx((logit - max) * per_temperature) * ONE);
    }
};

// Puts into shared.id the first id in the order of ids whose running sum of `measure` exceeds `target`. Every warp has a stretch
// of ids; one of them finds it.
template <class Measure>
__device__ __forceinline__ void search_stretches(SampleShared& shared, const Row& row, uint64_t target, Measure measure) {
    const uint32_t warps = blockDim.x / 32, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const uint32_t stretch = (row.vocab + warps - 1) / warps;
    const uint32_t first = min(warp * stretch, row.vocab), end = min(first + stretch, row.vocab);
    unsigned long long sum = 0;
    for (uint32_t i = first + lane; i < end; i += 32) sum += measure(i, row.logits[i]);
    sum = warp_sum(sum);
    if (lane == 0) shared.per_warp[warp] = sum;
    __syncthreads();
    for (uint32_t w = 0; w < warp; ++w) {
        if (target < shared.per_warp[w]) return;
        target -= shared.per_warp[w];
    }
    if (target >= sum) return;
    for (uint32_t i = first; i < end; i += 32) {
        unsigned long long running = i + lane < end ? measure(i + lane, row.logits[i + lane]) : 0;
#pragma unroll
        for (uint32_t step = 1; step < 32; step *= 2) {
            const unsigned long long below = __shfl_up_sync(FULL_WARP, running, step);
            if (lane >= step) running += below;
        }
        const uint32_t exceeding = __ballot_sync(FULL_WARP, running > target);
        if (exceeding) {
            if (lane == 0) shared.id = i + __ffs(exceeding) - 1;
            return;
        }
        target -= __shfl_sync(FULL_WARP, running, 31);
    }
}

template <class Measure>
__device__ __forceinline__ uint32_t search_ids(SampleShared& shared, const Row& row, uint64_t target, Measure measure) {
    search_stretches(shared, row, target, measure);
    __syncthreads();
    const uint32_t id = shared.id;
    __syncthreads();  // before the next search writes
    return id;
}

// The first place in the order of logits whose running sum of `measure` exceeds `target`.
template <class Measure>
__device__ __forceinline__ Place search_logits(SampleShared& shared, const Row& row, uint64_t target, Measure measure) {
    uint32_t key = 0;
    for (int shift = 24; shift >= 0; shift -= 8) {
        for (uint32_t i = threadIdx.x; i < 256; i += blockDim.x) shared.weight[i] = 0;
        __syncthreads();
        for (uint32_t i = threadIdx.x; i < row.vocab; i += blockDim.x) {
            const float logit = row.logits[i];
            const uint64_t candidate = order_key(logit);
            if (candidate >> shift >> 8 == static_cast<uint64_t>(key) >> shift >> 8) {
                atomicAdd(&shared.weight[candidate >> shift & 255], static_cast<unsigned long long>(measure(i, logit)));
            }
        }
        __syncthreads();
        if (threadIdx.x < 32) {
            // Lane i has the digits 255 - 8 i and the seven below.
            const int top = 255 - 8 * static_cast<int>(threadIdx.x);
            unsigned long long sum = 0;
            for (int d = top; d > top - 8; --d) sum += shared.weight[d];
            unsigned long long running = sum;
#pragma unroll
            for (uint32_t step = 1; step < 32; step *= 2) {
                const unsigned long long below = __shfl_up_sync(FULL_WARP, running, step);
                if (threadIdx.x >= step) running += below;
            }
            if (target < running && target >= running - sum) {
                uint64_t rest = target - (running - sum);
                int digit = top;
                while (rest >= shared.weight[digit]) rest -= shared.weight[digit--];
                shared.digit = digit;
                shared.rest = rest;
            }
        }
        __syncthreads();
        key |= shared.digit << shift;
        target = shared.rest;
        __syncthreads();  // before the next digit writes
    }
    auto of_key = [&](uint32_t i, float logit) { return order_key(logit) == key ? measure(i, logit) : 0; };
    return {key, search_ids(shared, row, target, of_key)};
}

// The sum of weights up to a place, its own included.
__device__ __forceinline__ uint64_t weight_up_to(const Row& row, Place place) {
    unsigned long long sum = 0;
    for (uint32_t i = threadIdx.x; i < row.vocab; i += blockDim.x) {
        if (place.holds(i, row.logits[i])) sum += row.weight(row.logits[i]);
    }
    return block_sum(sum);
}

extern "C" __global__ void __launch_bounds__(SAMPLE_THREADS) sample(const sample_params __grid_constant__ p) {
    auto& shared = shared_object<SampleShared>();
    const sample_draw draw = p.draws[blockIdx.x];
    Row row = {p.logits + static_cast<uint64_t>(blockIdx.x) * p.vocab, p.vocab, 0.0f, 0.0f};

    // The largest logit, of the lowest id; whether all are numbers below infinity.
    unsigned long long best = 0;
    float bad = 0.0f;
    for (uint32_t i = threadIdx.x; i < p.vocab; i += blockDim.x) {
        const float logit = row.logits[i];
        if (!(logit < INFINITY)) bad = 1.0f;
        best = max(best, static_cast<unsigned long long>(order_key(logit)) << 32 | ~i);
    }
    best = block_max(best);
    uint32_t id = ~static_cast<uint32_t>(best);
    row.max = row.logits[id];
    if (block_max(bad) > 0.0f || row.max == -INFINITY) {
        if (threadIdx.x == 0) p.ids[blockIdx.x] = SAMPLE_NOT_FINITE;
        return;
    }
    double sum = 0.0;
    for (uint32_t i = threadIdx.x; i < p.vocab; i += blockDim.x) sum += exp2_approx((row.logits[i] - row.max) * LOG2E);
    sum = block_sum(sum);

    if (draw.temperature > 0.0f) {
        row.per_temperature = LOG2E / draw.temperature;
        const uint4 words = philox(draw.seed, draw.request, draw.position);
        // 53 random bits at the top of the word: the high half of a product is a random share.
        const uint64_t random = (static_cast<uint64_t>(words.x) << 32 | words.y) >> 11 << 11;
        Place last = {0, p.vocab};
        if (draw.top_k > 0 && draw.top_k < p.vocab) {
            last = search_logits(shared, row, draw.top_k - 1, [](uint32_t, float) { return uint64_t(1); });
        }
        auto weight = [&](uint32_t i, float logit) { return last.holds(i, logit) ? row.weight(logit) : uint64_t(0); };
        uint64_t kept = weight_up_to(row, last);
        if (draw.top_p < 1.0f) {
            const double share = ceil(static_cast<double>(draw.top_p) * static_cast<double>(kept));
            const uint64_t reach = share < 1.0 ? 1 : min(static_cast<uint64_t>(share), kept);
            last = search_logits(shared, row, reach - 1, weight);
            kept = weight_up_to(row, last);
        }
        id = search_ids(shared, row, __umul64hi(random, kept), weight);
    }
    if (threadIdx.x == 0) {
        p.ids[blockIdx.x] = id;
        p.log_probs[blockIdx.x] = static_cast<float>(static_cast<double>(row.logits[id] - row.max) - log(sum));
    }
}
