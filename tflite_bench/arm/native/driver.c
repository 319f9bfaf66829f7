/* Runs .tflite models with LiteRT's C interface and prints how many instructions an inference takes.
 *
 * driver COUNTS FOLDER N: COUNTS is the file of counter.c; FOLDER holds 0.tflite ... (N-1).tflite. A line "INSTRUCTIONS
 * RUNS" is printed for each. FOLDER/0.3.in holds the bytes of tensor 3, an input of 0.tflite; inputs without a file are
 * random. With one, outputs are written to FOLDER/0.7.out. The functions are those of LiteRT's public headers.
 */
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

typedef void *handle;
extern int LiteRtCreateEnvironment(int count, const void *options, handle *environment);
extern int LiteRtCreateOptions(handle *options);
extern int LiteRtSetOptionsHardwareAccelerators(handle options, int accelerators);
extern int LiteRtCreateModelFromFile(handle environment, const char *path, handle *model);
extern int LiteRtCreateCompiledModel(handle environment, handle model, handle options, handle *compiled);
extern int LiteRtGetModelSignature(handle model, size_t index, handle *signature);
extern int LiteRtGetNumSignatureInputs(handle signature, size_t *count);
extern int LiteRtGetNumSignatureOutputs(handle signature, size_t *count);
extern int LiteRtGetSignatureInputTensorByIndex(handle signature, size_t index, handle *tensor);
extern int LiteRtGetSignatureOutputTensorByIndex(handle signature, size_t index, handle *tensor);
extern int LiteRtGetTensorIndex(handle tensor, uint32_t *index);
extern int LiteRtGetRankedTensorType(handle tensor, int32_t *type);
extern int LiteRtGetCompiledModelInputBufferRequirements(handle compiled, size_t signature, size_t index, handle *need);
extern int LiteRtGetCompiledModelOutputBufferRequirements(handle compiled, size_t signature, size_t index,
                                                          handle *need);
extern int LiteRtCreateManagedTensorBufferFromRequirements(handle environment, const int32_t *type, handle need,
                                                           handle *buffer);
extern int LiteRtGetTensorBufferPackedSize(handle buffer, size_t *bytes);
extern int LiteRtLockTensorBuffer(handle buffer, void **memory, int mode);
extern int LiteRtUnlockTensorBuffer(handle buffer);
extern int LiteRtRunCompiledModel(handle compiled, size_t signature, size_t input_count, handle *inputs,
                                  size_t output_count, handle *outputs);
extern void LiteRtDestroyTensorBuffer(handle buffer);
extern void LiteRtDestroyCompiledModel(handle compiled);
extern void LiteRtDestroyModel(handle model);

enum { CPU = 1, FLOAT32 = 1, INT8 = 9, UINT8 = 3, READ = 0, WRITE = 1, MOST_TENSORS = 64, MOST_RUNS = 10 };

struct port {
  handle buffer;
  uint32_t tensor;
  int32_t element_type;
  size_t bytes;
};

static void fail(const char *what, const char *why) {
  fprintf(stderr, "FAILED: %s: %s\n", what, why);
  exit(3);
}

static void check_status(const char *function, int status) {
  char text[32];
  snprintf(text, sizeof text, "status %d", status);
  if (status != 0) fail(function, text);
}

#define CHECK(function, ...) check_status(#function, function(__VA_ARGS__))

static FILE *open_tensor(const char *folder, int model, uint32_t tensor, const char *ending, const char *mode) {
  char path[4096];
  snprintf(path, sizeof path, "%s/%d.%u.%s", folder, model, tensor, ending);
  return fopen(path, mode);
}

static void fill_randomly(void *memory, const struct port *port) {
  static uint32_t state = 1;
  memset(memory, 0, port->bytes);
  size_t width = port->element_type == FLOAT32 ? sizeof(float) : 1;
  /* Wider integers are mostly indices, of which 0 is always valid. */
  if (port->element_type != FLOAT32 && port->element_type != INT8 && port->element_type != UINT8) return;
  for (size_t i = 0; i < port->bytes / width; i++) {
    state = state * 1664525u + 1013904223u;
    if (port->element_type == FLOAT32)
      ((float *)memory)[i] = (float)(int32_t)state / 2147483648.0f;
    else
      ((uint8_t *)memory)[i] = state >> 24;
  }
}

/* Returns whether the values came from a file. */
static int fill(const struct port *port, const char *folder, int model) {
  void *memory;
  CHECK(LiteRtLockTensorBuffer, port->buffer, &memory, WRITE);
  FILE *file = open_tensor(folder, model, port->tensor, "in", "rb");
  if (file == NULL) {
    fill_randomly(memory, port);
  } else {
    if (fread(memory, 1, port->bytes, file) != port->bytes || fgetc(file) != EOF) fail("inputs", "not the tensor's size");
    fclose(file);
  }
  CHECK(LiteRtUnlockTensorBuffer, port->buffer);
  return file != NULL;
}

static void write_out(const struct port *port, const char *folder, int model) {
  void *memory;
  CHECK(LiteRtLockTensorBuffer, port->buffer, &memory, READ);
  FILE *file = open_tensor(folder, model, port->tensor, "out", "wb");
  if (file == NULL || fwrite(memory, 1, port->bytes, file) != port->bytes || fclose(file) != 0)
    fail("outputs", "cannot be written");
  CHECK(LiteRtUnlockTensorBuffer, port->buffer);
}

static void create_port(struct port *port, handle environment, handle tensor, handle need) {
  /* Element type, rank in the low 7 bits, dimensions: as in LiteRT's header, with room for strides. */
  int32_t type[32] = {0};
  CHECK(LiteRtGetTensorIndex, tensor, &port->tensor);
  CHECK(LiteRtGetRankedTensorType, tensor, type);
  port->element_type = type[0];
  /* An open dimension runs as 1. */
  for (int axis = 0; axis < (type[1] & 127); axis++)
    if (type[2 + axis] < 0) type[2 + axis] = 1;
  CHECK(LiteRtCreateManagedTensorBufferFromRequirements, environment, type, need, &port->buffer);
  CHECK(LiteRtGetTensorBufferPackedSize, port->buffer, &port->bytes);
}

/* Runs until two counts in a row differ by less than 0.1 %: the first runs also prepare what later ones find. */
static void count_runs(handle compiled, size_t n_in, handle *inputs, size_t n_out, handle *outputs,
                       volatile uint64_t *total) {
  uint64_t before = 0, now = 0;
  int runs = 0;
  do {
    before = now;
    uint64_t start = *total;
    CHECK(LiteRtRunCompiledModel, compiled, 0, n_in, inputs, n_out, outputs);
    now = *total - start;
    runs++;
  } while (runs < MOST_RUNS && (runs < 2 || 1000 * (now > before ? now - before : before - now) >= now));
  printf("%llu %d\n", (unsigned long long)now, runs);
  fflush(stdout);
}

static void run(handle environment, handle options, const char *folder, int number, volatile uint64_t *total) {
  handle model, compiled, signature, tensor, need, buffers[MOST_TENSORS];
  struct port ports[MOST_TENSORS];
  size_t n_in, n_out;
  int given = 0;
  char path[4096];
  snprintf(path, sizeof path, "%s/%d.tflite", folder, number);
  CHECK(LiteRtCreateModelFromFile, environment, path, &model);
  CHECK(LiteRtCreateCompiledModel, environment, model, options, &compiled);
  CHECK(LiteRtGetModelSignature, model, 0, &signature);
  CHECK(LiteRtGetNumSignatureInputs, signature, &n_in);
  CHECK(LiteRtGetNumSignatureOutputs, signature, &n_out);
  if (n_in + n_out > MOST_TENSORS) fail("inputs and outputs", "more than 64");
  for (size_t i = 0; i < n_in; i++) {
    CHECK(LiteRtGetSignatureInputTensorByIndex, signature, i, &tensor);
    CHECK(LiteRtGetCompiledModelInputBufferRequirements, compiled, 0, i, &need);
    create_port(&ports[i], environment, tensor, need);
    given |= fill(&ports[i], folder, number);
  }
  for (size_t i = 0; i < n_out; i++) {
    CHECK(LiteRtGetSignatureOutputTensorByIndex, signature, i, &tensor);
    CHECK(LiteRtGetCompiledModelOutputBufferRequirements, compiled, 0, i, &need);
    create_port(&ports[n_in + i], environment, tensor, need);
  }
  for (size_t i = 0; i < n_in + n_out; i++) buffers[i] = ports[i].buffer;
  count_runs(compiled, n_in, buffers, n_out, buffers + n_in, total);
  for (size_t i = n_in; given && i < n_in + n_out; i++) write_out(&ports[i], folder, number);
  for (size_t i = 0; i < n_in + n_out; i++) LiteRtDestroyTensorBuffer(buffers[i]);
  LiteRtDestroyCompiledModel(compiled);
  LiteRtDestroyModel(model);
}

int main(int count, char **words) {
  handle environment, options;
  int file = count == 4 ? open(words[1], O_RDONLY) : -1;
  volatile uint64_t *total = file < 0 ? MAP_FAILED : mmap(NULL, sizeof *total, PROT_READ, MAP_SHARED, file, 0);
  if (total == MAP_FAILED) fail("arguments", "driver COUNTS FOLDER N");
  CHECK(LiteRtCreateEnvironment, 0, NULL, &environment);
  CHECK(LiteRtCreateOptions, &options);
  CHECK(LiteRtSetOptionsHardwareAccelerators, options, CPU);
  for (int number = 0; number < atoi(words[3]); number++) run(environment, options, words[2], number, total);
  return 0;
}
