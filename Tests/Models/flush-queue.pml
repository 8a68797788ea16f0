/* The flush queue of Sources/IOMMU/Invalidation, for a model checker: every interleaving of threads that unmap, one that
 * switches the protection, the timer, and a device whose IOTLB fills itself from what is mapped.
 *
 *   - An address leaves the queue only when no translation of it is left, neither mapped nor cached.
 *   - Nothing is forgotten: when everybody is done, the queue is empty without anyone's help but the timer's.
 *
 * Compiled with KERNEL_OWNED the flush itself unmaps what it finds in the rings; otherwise an unmap clears its entry and
 * the flush invalidates all that is cached. Each MUTATE_… takes away one thing that the protocol needs.
 */
#define PAGES 3
#define RINGS 2
#define ROOM 2

typedef Ring {
  bool open;
  byte count;
  byte page[ROOM];
  byte counter[ROOM]
}

Ring ring[RINGS];
bit mapped[PAGES], cached[PAGES], waiting[PAGES];
byte started, finished;
bool flushing, armed, lazy = true;
byte busyThreads = 2;
bool switchDone, ended;

/* What must hold when an address is given back. */
inline release(p) {
  assert(!mapped[p] && !cached[p]);
  waiting[p] = 0
}

/* Entries that may go, one at a time from the head; the ring's lock is the atomic block. */
inline reclaim(r) {
  seen = finished;
  do
  :: atomic {
#ifdef MUTATE_COMPARE
       ring[r].count > 0 && ring[r].counter[0] <= seen ->
#else
       ring[r].count > 0 && ring[r].counter[0] < seen ->
#endif
       victim = ring[r].page[0];
       ring[r].page[0] = ring[r].page[1]; ring[r].counter[0] = ring[r].counter[1];
       ring[r].count--;
       release(victim)
     }
  :: else -> break
  od
}

/* A flush is over: one that began later may have been quicker. */
inline finish() {
#ifdef MUTATE_MAXIMUM
  finished = number
#else
  atomic { if :: finished < number -> finished = number :: else fi }
#endif
}

/* While another thread flushes, on tables of the process: looks at no ring. */
inline flushBeside() {
  atomic { started++; number = started };
  atomic { cached[0] = 0; cached[1] = 0; cached[2] = 0 };
  finish()
}

/* One at a time; `ok` is false when another thread flushes. */
inline flush(ok) {
  atomic {
    if
#ifdef MUTATE_TWO_FLUSHERS
    :: true -> flushing = true; ok = true
#else
    :: !flushing -> flushing = true; ok = true
    :: else -> ok = false
#endif
    fi
  };
  if
  :: ok ->
#ifdef MUTATE_NUMBER
       skip;
#else
       atomic { started++; number = started };
#endif
#ifdef KERNEL_OWNED
       /* Ring by ring, under its lock; then the ioctls, one by one. */
       r = 0;
       do
       :: r < RINGS ->
            atomic {
              i = 0;
              do
              :: i < ring[r].count ->
                   if
                   :: ring[r].counter[i] < number -> found[ring[r].page[i]] = 1
                   :: else
                   fi;
                   i++
              :: else -> break
              od
            };
            r++
       :: else -> break
       od;
       i = 0;
       do
       :: i < PAGES -> atomic { if :: found[i] -> mapped[i] = 0; cached[i] = 0; found[i] = 0 :: else fi }; i++
       :: else -> break
       od;
#else
       atomic { cached[0] = 0; cached[1] = 0; cached[2] = 0 };
#endif
#ifdef MUTATE_NUMBER
       atomic { started++; number = started };
#endif
       finish();
       flushing = false
  :: else
  fi
}

inline arm() {
  if
  :: !armed -> armed = true
  :: else
  fi
}

#define LOCALS byte number, seen, victim, r, i, n; bool ok; bit found[PAGES]

/* Maps and unmaps a page of its own, then another. */
proctype unmapper(byte page; byte mine) {
  LOCALS;
  bit queued;
  atomic { assert(!waiting[page]); mapped[page] = 1 };
#ifndef KERNEL_OWNED
  mapped[page] = 0;
#endif
  waiting[page] = 1;
  queued = 0;
  do
  :: queued -> break
  :: !queued ->
       atomic { n = (lazy -> 1 : 0) };
       if
       :: n == 0 ->
            /* On the spot: one unmap, one invalidation. */
            atomic { mapped[page] = 0; cached[page] = 0 };
            release(page);
            queued = 1
       :: else ->
            atomic {
              if
              :: ring[mine].open && ring[mine].count < ROOM - 1 ->
                   ring[mine].page[ring[mine].count] = page;
                   ring[mine].counter[ring[mine].count] = started;
                   ring[mine].count++;
                   queued = 1
              :: ring[mine].open && ring[mine].count >= ROOM - 1 -> n = 2
              :: !ring[mine].open -> n = 3
              fi
            };
            if
            :: queued -> arm(); reclaim(mine)
            :: !queued && n == 2 ->
                 reclaim(mine);
                 if
                 :: ring[mine].count < ROOM - 1
                 :: else ->
                      flush(ok);
                      if
                      :: ok -> reclaim(mine)
                      :: else ->
#ifdef KERNEL_OWNED
                           atomic { mapped[page] = 0; cached[page] = 0 };
                           release(page);
                           queued = 1
#else
                           flushBeside();
                           reclaim(mine)
#endif
                      fi
                 fi
            :: !queued && n == 3 ->
                 if
                 :: lazy ->
                      /* A switch is under way: on the spot. */
                      atomic { mapped[page] = 0; cached[page] = 0 };
                      release(page);
                      queued = 1
                 :: else
                 fi
            fi
       fi
  od;
  busyThreads--
}

/* From lazy to strict, and for one ring back again. */
proctype switcher() {
  LOCALS;
  byte target;
  lazy = false;
  r = 0;
#ifndef MUTATE_OPEN
  atomic { ring[0].open = false }; atomic { ring[1].open = false };
#endif
  target = started + 1;
  do
  :: finished >= target -> break
  :: ring[0].count == 0 && ring[1].count == 0 -> break
  :: else -> flush(ok)
  od;
  reclaim(0); reclaim(1);
  (!flushing);
#ifdef MUTATE_OPEN
  assert(ring[0].count == 0 && ring[1].count == 0);
#else
  assert(ring[0].count == 0 && ring[1].count == 0);
  if
  :: atomic { ring[0].open = true }; lazy = true
  :: skip
  fi;
#endif
  switchDone = true
}

proctype timer() {
  LOCALS;
end:
  do
  :: armed ->
#ifdef MUTATE_TIMER
       if
       :: ring[0].count > 0 || ring[1].count > 0 ->
            flush(ok);
            if :: ok -> reclaim(0); reclaim(1) :: else fi
       :: else
       fi;
       armed = false
#else
       armed = false;
       if
       :: ring[0].count > 0 || ring[1].count > 0 ->
            flush(ok);
            if :: ok -> reclaim(0); reclaim(1) :: else -> arm() fi
       :: else
       fi
#endif
  :: ended -> break
  od
}

/* Caches what is mapped, at any time. */
proctype device() {
  byte p;
end:
  do
  :: atomic { !ended && mapped[0] && !cached[0] -> cached[0] = 1 }
  :: atomic { !ended && mapped[1] && !cached[1] -> cached[1] = 1 }
  :: atomic { !ended && mapped[2] && !cached[2] -> cached[2] = 1 }
  :: ended -> break
  od
}

init {
  atomic {
    ring[0].open = true; ring[1].open = true;
    run device(); run timer();
    run unmapper(0, 0); run unmapper(1, 0 + SECOND_RING);
#ifdef SWITCHING
    run switcher()
#else
    switchDone = true
#endif
  };
  (busyThreads == 0 && switchDone);
  /* Nobody has anything to do any more. */
  (timeout);
  assert(ring[0].count == 0 && ring[1].count == 0);
  ended = true
}
