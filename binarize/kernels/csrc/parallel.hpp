// Work items spread over threads by a counter, so that no thread needs to know its number.

typedef void (*ItemBody)(const void* context, int64_t item, int64_t slot);

struct Region {
  ItemBody body;
  const void* context;
  int64_t items;
  int64_t next;
  int64_t slots;
};

static void region_main(void* data) {
  Region* region = (Region*)data;
  // A slot is a thread's own scratch memory.
  const int64_t slot = __atomic_fetch_add(&region->slots, 1, __ATOMIC_RELAXED);
  for (;;) {
    const int64_t item = __atomic_fetch_add(&region->next, 1, __ATOMIC_RELAXED);
    if (item >= region->items) return;
    region->body(region->context, item, slot);
  }
}

struct Team {
  int64_t threads;
  BinarizeRunner runner;

  void run(ItemBody body, const void* context, int64_t items) const {
    if (items <= 0) return;
    Region region = {body, context, items, 0, 0};
    const int64_t count = items < threads ? items : threads;
    if (runner && count > 1) {
      runner(region_main, &region, (unsigned)count, 0);
    } else {
      region_main(&region);
    }
  }
};
