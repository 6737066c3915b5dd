/* GLib keeps state under pthread keys, and aborts if it gets none */

#include <glib.h>
#include <stdio.h>

static GPrivate values[2000];
static gint freed;

static void note(gpointer value) {
    (void) value;
    g_atomic_int_inc(&freed);
}

static gpointer run(gpointer data) {
    for (guint i = 0; i < G_N_ELEMENTS(values); i++) {
        g_assert(g_private_get(&values[i]) == NULL);
        g_private_set(&values[i], data);
        g_assert(g_private_get(&values[i]) == data);
    }
    return data;
}

static void work(gpointer data, gpointer user_data) {
    GMainContext* context = g_main_context_new();
    g_main_context_push_thread_default(context);
    g_atomic_int_add((gint*) user_data, GPOINTER_TO_INT(data));
    while (g_main_context_iteration(context, FALSE));
    g_main_context_pop_thread_default(context);
    g_main_context_unref(context);
}

int main(void) {

    for (guint i = 0; i < G_N_ELEMENTS(values); i++)
        values[i] = (GPrivate) G_PRIVATE_INIT(note);

    for (int i = 0; i < 4; i++)
        g_thread_join(g_thread_new("values", run, GINT_TO_POINTER(1)));
    g_assert_cmpint(freed, ==, 4 * G_N_ELEMENTS(values));

    gint sum = 0;
    GThreadPool* pool = g_thread_pool_new(work, &sum, 4, FALSE, NULL);
    for (int i = 1; i <= 1000; i++)
        g_thread_pool_push(pool, GINT_TO_POINTER(i), NULL);
    g_thread_pool_free(pool, FALSE, TRUE);
    g_assert_cmpint(sum, ==, 500500);

    printf("%d values freed\n", freed);
    return 0;

}
