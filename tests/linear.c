/* y = A x + b of two numbers, read from the arguments, a file or standard input, and ways to go wrong. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void answer(FILE *to, double a, double b) {
  fprintf(to, "# three numbers\n%.17g\n%.17g\n%.17g\n", a + 2 * b, a - b, 0.5 * a + 1);
}

int main(int count, char **argument) {
  const char *mode = argument[1];
  double a = 0, b = 0;
  if (!strcmp(mode, "arguments")) {
    if (count != 4) return 9;
    answer(stdout, strtod(argument[2], 0), strtod(argument[3], 0));
  } else if (!strcmp(mode, "input")) {
    if (scanf("%lf %lf", &a, &b) != 2) return 9;
    answer(stdout, a, b);
  } else if (!strcmp(mode, "file")) {
    FILE *from = fopen("settings/input file.txt", "r"), *to = fopen("result.txt", "w");
    if (!from || !to || fscanf(from, "{ a = %lf; b = %lf; }", &a, &b) != 2) return 9;
    answer(to, a, b);
    fclose(to);
  } else if (!strcmp(mode, "echo")) {
    for (int i = 2; i < count; i++) printf("%s\n", argument[i]);
  } else if (!strcmp(mode, "fails")) { /* above 2 */
    a = strtod(argument[2], 0);
    if (a <= 2) { answer(stdout, a, 0); return 0; }
    fprintf(stderr, "\033[31mline of long ago\nno root\n\nthe model\tbroke off\n");
    if (argument[3][0] == 'c') abort();
    return 3;
  } else if (!strcmp(mode, "writes")) { /* the text that follows */
    printf("%s", argument[3]);
    fprintf(stderr, "done");
  } else if (!strcmp(mode, "hangs")) { /* above 2, with a child of a child whose parent is gone */
    if (strtod(argument[2], 0) <= 2) { answer(stdout, 0, 0); return 0; }
    if (!fork()) {
      if (!fork()) {
        FILE *to = fopen(argument[3], "w");
        fprintf(to, "%d\n", getpid());
        fclose(to);
        sleep(600);
      }
      _exit(0);
    }
    sleep(600);
  } else if (!strcmp(mode, "leaves")) { /* a process that goes on, and holds what it has inherited open */
    if (!fork()) { sleep(600); _exit(0); }
    answer(stdout, 0, 0);
  }
  return 0;
}
