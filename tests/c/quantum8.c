/*
 * Allocates like Fluent Bit's images and packages. They have jemalloc in the executable, configured with
 * --with-lg-quantum=3: sizes up to 64 bytes are rounded up to a multiple of 8, not of 16, and are aligned to
 * 8 bytes only unless that is a multiple of 16.
 *
 * All memory comes from glibc. Allocations that must not be aligned to 16 are moved by 8 bytes, which hold their
 * size; glibc never returns such addresses, so they can be recognised.
 */
#include <malloc.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { QUANTUM = 8, ALIGNED_FROM = 64 };

void *__libc_malloc(size_t size);
void *__libc_calloc(size_t count, size_t size);
void *__libc_realloc(void *memory, size_t size);
void __libc_free(void *memory);

static int is_moved(const void *memory)
{
    return (uintptr_t) memory % (2 * QUANTUM) != 0;
}

static int moves(size_t size)
{
    return size <= ALIGNED_FROM && (size + QUANTUM - 1) / QUANTUM % 2 == 1;
}

static void *moved(void *memory, size_t size)
{
    if (memory == NULL) {
        return NULL;
    }
    memcpy(memory, &size, sizeof size);
    return (char *) memory + QUANTUM;
}

void *malloc(size_t size)
{
    return moves(size) ? moved(__libc_malloc(QUANTUM + size), size) : __libc_malloc(size);
}

void *calloc(size_t count, size_t size)
{
    size_t all;
    if (__builtin_mul_overflow(count, size, &all) || !moves(all)) {
        return __libc_calloc(count, size);
    }
    return moved(__libc_calloc(1, QUANTUM + all), all);
}

void free(void *memory)
{
    __libc_free(is_moved(memory) ? (char *) memory - QUANTUM : memory);
}

void *realloc(void *memory, size_t size)
{
    if (memory == NULL) {
        return malloc(size);
    }
    if (size == 0) {
        free(memory);
        return NULL;
    }
    size_t old;
    if (is_moved(memory)) {
        memcpy(&old, (char *) memory - QUANTUM, sizeof old);
    } else if (!moves(size)) {
        return __libc_realloc(memory, size);
    } else {
        old = malloc_usable_size(memory);
    }
    void *made = malloc(size);
    if (made != NULL) {
        memcpy(made, memory, old < size ? old : size);
        free(memory);
    }
    return made;
}
