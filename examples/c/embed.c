/* Embeds rows of token ids with an encoder's bundle, by onnxruntime's C API alone.
 *
 *     embed MODEL.onnx < IDS
 *
 * Of each line of ids, special ones included, it prints the sentence embedding on a line. What the graph takes is what
 * every encoder of tfm-export takes: input_ids, attention_mask and, where the model has segments, token_type_ids.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "onnxruntime_c_api.h"

#define OUTPUT "sentence_embedding"
#define MOST_IDS 8192
#define MOST_INPUTS 3

typedef struct {
  const OrtApi *api;
  OrtEnv *env;
  OrtSession *session;
  OrtMemoryInfo *memory;
  OrtAllocator *allocator;
  size_t input_count;
  char *inputs[MOST_INPUTS];
} Embedder;

/* Ends the program where onnxruntime says that something is wrong. */
static void check(const Embedder *e, OrtStatus *status) {
  if (status == NULL) return;
  fprintf(stderr, "embed: %s\n", e->api->GetErrorMessage(status));
  e->api->ReleaseStatus(status);
  exit(1);
}

static void fail(const char *what, const char *about) {
  fprintf(stderr, "embed: %s%s\n", what, about);
  exit(1);
}

static void open_embedder(Embedder *e, const ORTCHAR_T *path) {
  memset(e, 0, sizeof *e);
  e->api = OrtGetApiBase()->GetApi(ORT_API_VERSION);
  if (e->api == NULL) fail("this onnxruntime is older than the header: ", OrtGetApiBase()->GetVersionString());
  check(e, e->api->CreateEnv(ORT_LOGGING_LEVEL_ERROR, "embed", &e->env));

  OrtSessionOptions *options;
  check(e, e->api->CreateSessionOptions(&options));
  /* Without it 8-bit products saturate on x86 processors that have no VNNI; on others it changes nothing. */
  check(e, e->api->AddSessionConfigEntry(options, "session.x64quantprecision", "1"));
  check(e, e->api->CreateSession(e->env, path, options, &e->session));
  e->api->ReleaseSessionOptions(options);

  check(e, e->api->CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &e->memory));
  check(e, e->api->GetAllocatorWithDefaultOptions(&e->allocator));
  check(e, e->api->SessionGetInputCount(e->session, &e->input_count));
  if (e->input_count > MOST_INPUTS) fail("the graph takes more than an encoder's inputs", "");
  for (size_t i = 0; i < e->input_count; i++) {
    check(e, e->api->SessionGetInputName(e->session, i, e->allocator, &e->inputs[i]));
  }
}

static void close_embedder(Embedder *e) {
  for (size_t i = 0; i < e->input_count; i++) check(e, e->api->AllocatorFree(e->allocator, e->inputs[i]));
  e->api->ReleaseMemoryInfo(e->memory);
  e->api->ReleaseSession(e->session);
  e->api->ReleaseEnv(e->env);
}

/* Runs the graph on one row; rows of an int8 graph run alone, since a batch's rows would share scales. */
static OrtValue *embed(const Embedder *e, int64_t *ids, size_t count) {
  int64_t *ones = malloc(count * sizeof *ones), *zeros = calloc(count, sizeof *zeros);
  if (ones == NULL || zeros == NULL) fail("out of memory", "");
  for (size_t i = 0; i < count; i++) ones[i] = 1;

  const int64_t shape[] = {1, (int64_t)count};
  OrtValue *values[MOST_INPUTS], *found = NULL;
  const char *const outputs[] = {OUTPUT};
  for (size_t i = 0; i < e->input_count; i++) {
    const char *name = e->inputs[i];
    int64_t *data = strcmp(name, "input_ids") == 0 ? ids : strcmp(name, "attention_mask") == 0 ? ones : zeros;
    check(e, e->api->CreateTensorWithDataAsOrtValue(e->memory, data, count * sizeof *data, shape, 2,
                                                    ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64, &values[i]));
  }
  check(e, e->api->Run(e->session, NULL, (const char *const *)e->inputs, (const OrtValue *const *)values,
                       e->input_count, outputs, 1, &found));
  for (size_t i = 0; i < e->input_count; i++) e->api->ReleaseValue(values[i]);
  free(ones);
  free(zeros);
  return found;
}

static void print_vector(const Embedder *e, OrtValue *vector) {
  OrtTensorTypeAndShapeInfo *info;
  float *numbers;
  size_t count;
  check(e, e->api->GetTensorTypeAndShape(vector, &info));
  check(e, e->api->GetTensorShapeElementCount(info, &count));
  e->api->ReleaseTensorTypeAndShapeInfo(info);
  check(e, e->api->GetTensorMutableData(vector, (void **)&numbers));
  /* Nine digits are a float32, to the last bit. */
  for (size_t i = 0; i < count; i++) printf("%.9g%c", (double)numbers[i], i + 1 < count ? ' ' : '\n');
}

/* Reads the ids of one line; onnxruntime takes a negative one without a word, so that it is refused here. */
static size_t read_ids(char *line, int64_t *ids) {
  size_t count = 0;
  for (char *word = strtok(line, " \t\r\n"); word != NULL; word = strtok(NULL, " \t\r\n")) {
    char *end;
    int64_t id = strtoll(word, &end, 10);
    if (*end != '\0' || id < 0) fail("no token id: ", word);
    if (count == MOST_IDS) fail("more ids in a line than any encoder reads", "");
    ids[count++] = id;
  }
  return count;
}

int main(int argc, char **argv) {
  if (argc != 2) fail("usage: embed MODEL.onnx < IDS", "");
#ifdef _WIN32
  wchar_t path[4096];
  if (mbstowcs(path, argv[1], sizeof path / sizeof *path) == (size_t)-1) fail("the path is no text: ", argv[1]);
#else
  const char *path = argv[1];
#endif
  Embedder e;
  open_embedder(&e, path);
  static char line[16 * MOST_IDS];
  static int64_t ids[MOST_IDS];
  while (fgets(line, sizeof line, stdin) != NULL) {
    size_t count = read_ids(line, ids);
    if (count == 0) continue;
    OrtValue *vector = embed(&e, ids, count);
    print_vector(&e, vector);
    e.api->ReleaseValue(vector);
  }
  close_embedder(&e);
  return 0;
}
