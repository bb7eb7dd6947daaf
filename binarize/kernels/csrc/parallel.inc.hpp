// A unit's work in stages, which the threads of one parallel region go through together.
//
// Threads join and leave as the runner and the system decide: a stage ends when its items are done,
// not when some number of threads has arrived. One thread alone can therefore do all the work, and
// a late one finds it done.
// A call is whatever the items need to know: its type is the caller's.
template <class Call>
struct Stage {
  void (*item)(Call& call, int64_t item, int64_t slot);
  // Runs between this stage and the next, in one thread; may be null.
  void (*after)(Call& call);
  int64_t items;     // at least 1
  uint64_t claimed;  // from the front (low half) and from the back (high half)
  int64_t done;
  int32_t over;
};

template <class Call>
struct Region {
  Call* call;
  Stage<Call>* stages;
  int64_t count;
  int64_t slots;
};

// An item that no other thread does, or -1.
template <class Call>
static int64_t claim(Stage<Call>& stage, bool from_back) {
  const uint64_t before =
      __atomic_fetch_add(&stage.claimed, from_back ? (uint64_t)1 << 32 : 1, __ATOMIC_RELAXED);
  const int64_t front = (int64_t)(before & 0xffffffff), back = (int64_t)(before >> 32);
  if (front + back >= stage.items) return -1;
  return from_back ? stage.items - 1 - back : front;
}

static inline void pause_briefly(int64_t turn) {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
  // The thread that this one waits for may have been preempted.
  if (turn > 1000) yield_thread();
}

template <class Call>
static void region_main(void* data) {
  Region<Call>& region = *(Region<Call>*)data;
  // A slot is a thread's own scratch memory. Two threads start at either end of the items, so that
  // each finds its results of the previous stage in its own cache.
  const int64_t slot = __atomic_fetch_add(&region.slots, 1, __ATOMIC_RELAXED);
  for (Stage<Call>* stage = region.stages; stage < region.stages + region.count; ++stage) {
    for (;;) {
      const int64_t item = claim(*stage, slot % 2);
      if (item < 0) break;
      stage->item(*region.call, item, slot);
      if (__atomic_add_fetch(&stage->done, 1, __ATOMIC_ACQ_REL) < stage->items) continue;
      if (stage->after) stage->after(*region.call);
      __atomic_store_n(&stage->over, 1, __ATOMIC_RELEASE);
    }
    for (int64_t turn = 0; !__atomic_load_n(&stage->over, __ATOMIC_ACQUIRE); ++turn) {
      pause_briefly(turn);
    }
  }
}

template <class Call>
static void run_stages(Call& call, Stage<Call>* stages, int64_t count, int64_t threads,
                       BinarizeRunner runner) {
  int64_t max_items = 0;
  for (int64_t i = 0; i < count; ++i) {
    max_items = stages[i].items > max_items ? stages[i].items : max_items;
  }
  Region<Call> region = {&call, stages, count, 0};
  threads = max_items < threads ? max_items : threads;
  if (runner && threads > 1) {
    runner(region_main<Call>, &region, (unsigned)threads, 0);
  } else {
    region_main<Call>(&region);
  }
}
