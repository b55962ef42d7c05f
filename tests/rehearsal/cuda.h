// What cublas.c takes of cuda.c.
void note(const char* call, const char* format, ...) __attribute__((format(printf, 2, 3)));
int refuse(const char* call, int error, const char* why);      // logs it, and returns the error
int work(const char* call, void* stream, int* captured);       // what is queued; 0 or an error
const char* as_node(int captured);                             // its field in the log
int of_another_device(const void* address);                    // than the current one
