/* A plugin of QEMU: counts executed instructions in a file that the emulated program maps too.
 *
 * qemu-aarch64 -plugin counter.so,counts=FILE ...; FILE has at least 8 bytes. The functions are those of QEMU's plugin
 * interface (docs/devel/tcg-plugins), declared here because Debian ships no header for them. Valid for one thread.
 */
#include <fcntl.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

struct block;
extern size_t qemu_plugin_tb_n_insns(const struct block *block);
extern void qemu_plugin_register_vcpu_tb_trans_cb(uint64_t id, void (*translated)(uint64_t, struct block *));
extern void qemu_plugin_register_vcpu_tb_exec_cb(struct block *block, void (*executed)(unsigned, void *), int registers,
                                                 void *length);

__attribute__((visibility("default"))) int qemu_plugin_version = PLUGIN_VERSION;
static uint64_t *total;

static void executed(unsigned core, void *length) { *total += (uintptr_t)length; }

static void translated(uint64_t id, struct block *block) {
  qemu_plugin_register_vcpu_tb_exec_cb(block, executed, 0, (void *)(uintptr_t)qemu_plugin_tb_n_insns(block));
}

__attribute__((visibility("default"))) int qemu_plugin_install(uint64_t id, const void *info, int count, char **words) {
  const char *path = count == 1 ? strchr(words[0], '=') : NULL;
  int file = path == NULL ? -1 : open(path + 1, O_RDWR);
  if (file < 0) return 1;
  total = mmap(NULL, sizeof *total, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  close(file);
  if (total == MAP_FAILED) return 1;
  qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
  return 0;
}
