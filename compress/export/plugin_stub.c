/* libnvinfer_plugin.so.11 for TensorRT's Python API over the TensorRT-for-RTX libraries, which have no plugins: the one
   function the API links to. It registers nothing and says that it worked. */
#include <stdbool.h>

bool initLibNvInferPlugins(void *logger, char const *library_namespace)
{
    (void)logger;
    (void)library_namespace;
    return true;
}
