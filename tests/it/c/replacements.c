/* Does FreeRDP 2 call the functions of the plugin that replace its own? This file is, by what is defined, one of FreeRDP's two
 * libraries, which have no more than is needed, or the program that loads the plugin and says what was called. */

#include <freerdp/codec/mppc.h>
#include <freerdp/codec/ncrush.h>
#include <freerdp/codec/xcrush.h>
#include <freerdp/freerdp.h>
#include <winpr/error.h>
#include <winpr/registry.h>
#include <winpr/synch.h>

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#if defined(WINPR)

/* How often FreeRDP slept, and waited for the server */
int slept, waited;

VOID Sleep(DWORD milliseconds) {
    slept++;
}

DWORD WaitForMultipleObjects(DWORD count, const HANDLE* handles, BOOL all, DWORD milliseconds) {
    waited++;
    return WAIT_OBJECT_0;
}

/* The registry has one key with a value of 5 */
LONG RegOpenKeyExA(HKEY key, LPCSTR name, DWORD options, REGSAM access, PHKEY result) {
    if (strcmp(name, "There") != 0)
        return ERROR_FILE_NOT_FOUND;
    *result = (HKEY) &slept;
    return ERROR_SUCCESS;
}

LONG RegQueryValueExA(HKEY key, LPCSTR name, LPDWORD reserved, LPDWORD type, LPBYTE data, LPDWORD size) {
    *(DWORD*) data = 5;
    return key == (HKEY) &slept ? ERROR_SUCCESS : ERROR_FILE_NOT_FOUND;
}

LONG RegCloseKey(HKEY key) {
    return ERROR_SUCCESS;
}

#elif defined(FREERDP)

#define SIZE (1 << 20)

/* Memory that is used, and full of zeroes */
static void* zeroes(void) {
    char* memory = malloc(SIZE);
    memset(memory, 1, SIZE);
    memset(memory, 0, SIZE);
    return memory;
}

MPPC_CONTEXT* mppc_context_new(DWORD level, BOOL compressor) {
    return zeroes();
}

NCRUSH_CONTEXT* ncrush_context_new(BOOL compressor) {
    return zeroes();
}

XCRUSH_CONTEXT* xcrush_context_new(BOOL compressor) {
    return zeroes();
}

void mppc_context_free(MPPC_CONTEXT* context) {
    free(context);
}

void ncrush_context_free(NCRUSH_CONTEXT* context) {
    free(context);
}

void xcrush_context_free(XCRUSH_CONTEXT* context) {
    free(context);
}

DWORD freerdp_get_event_handles(rdpContext* context, HANDLE* handles, DWORD count) {
    return 2;
}

/* Whether a page in the middle of the memory has been given back */
static const char* state(void* memory) {
    unsigned long size = sysconf(_SC_PAGESIZE);
    unsigned char resident;
    if (memory == NULL)
        return "missing";
    mincore((void*) (((unsigned long) memory + SIZE / 2) / size * size), size, &resident);
    return resident & 1 ? "kept" : "given back";
}

/* What the value of a key is, or 1 if there is none */
static unsigned int value(const char* name) {
    HKEY key;
    DWORD type, data = 1, size = sizeof(data);
    if (RegOpenKeyExA(NULL, name, 0, 0, &key) != ERROR_SUCCESS)
        return 1;
    RegQueryValueExA(key, "UseThreads", NULL, &type, (BYTE*) &data, &size);
    RegCloseKey(key);
    return data;
}

/* Does what FreeRDP does when it connects */
void use(void) {
    extern int slept, waited;
    Sleep(100);
    printf("slept %i, waited %i, ", slept, waited);
    printf("threads %u, key %u, no key %u, ", value("Some\\RemoteFX"), value("There"), value("Else"));
    MPPC_CONTEXT* mppc = mppc_context_new(1, FALSE);
    NCRUSH_CONTEXT* ncrush = ncrush_context_new(FALSE);
    XCRUSH_CONTEXT* xcrush = xcrush_context_new(FALSE);
    printf("contexts %s, %s, %s\n", state(mppc), state(ncrush), state(xcrush));
    mppc_context_free(mppc);
    ncrush_context_free(ncrush);
    xcrush_context_free(xcrush);
}

#else

int main(int argc, char** argv) {
    void* plugin = argc > 1 ? dlopen(argv[1], RTLD_LAZY | RTLD_NODELETE) : NULL;
    if (plugin == NULL) {
        fprintf(stderr, "%s\n", dlerror());
        return 1;
    }
    void (*set_connecting)(rdpContext*) = dlsym(plugin, "guac_rdp_freerdp2_set_connecting");
    void (*use)(void) = dlsym(plugin, "use");
    if (set_connecting == NULL || use == NULL)
        return 1;
    static rdpSettings settings;
    static rdpContext context = { .settings = &settings };
    set_connecting(&context);
    /* FreeRDP is told how long to wait while it connects */
    settings.TcpAckTimeout = 1000;
    use();
    set_connecting(NULL);
    /* The time that was not slept counts only while FreeRDP connects */
    return settings.TcpAckTimeout != 1000;
}

#endif
